"""The GDB remote serial protocol server."""
