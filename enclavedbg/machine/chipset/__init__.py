"""The PC devices that the software CPU does not bring: 8259, 8254, 16550, i8042, RTC, ACPI registers."""
