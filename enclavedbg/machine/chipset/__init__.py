"""The few parts of a PC that Linux expects beside the processor: interrupt controller, timer, serial port, clock."""
