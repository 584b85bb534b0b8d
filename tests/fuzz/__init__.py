"""Coverage-guided fuzzing of everything that reads images: `make fuzz`, or `python -m tests.fuzz --help`."""
