# Everything runs in a virtual environment of its own, .venv, made on first use. `make help` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
# What an installation depends on; a change installs again.
INPUTS := pyproject.toml setup.py $(wildcard enclavedbg/machine/cpu/soft/native*.[ch])
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench fuzz stress clean

help:
	@echo "make demo    boot the demo enclave: a live shell, or a tour without a terminal"
	@echo "make test    run the tests"
	@echo "make lint    run ruff and mypy"
	@echo "make bench   measure the figures of docs/benchmarks.md"
	@echo "make fuzz    feed damaged input to all that reads it, 80 minutes; ARGS=\"image --seconds 60\" less"
	@echo "make stress  run the long stress image on the software CPU, repeatedly"
	@echo "make clean   remove the virtual environment and everything that was built"
	@echo
	@echo "Needed: Python 3.11 or newer, make; gdb for the gdb parts."
	@echo "PYTHON=... names another interpreter."

demo: $(VENV)/.installed
	@$(BIN)/enclavedbg demo

test: $(VENV)/.installed-test
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	@status=0; $(BIN)/ruff check . || status=1; $(BIN)/mypy || status=1; exit $$status

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks $(ARGS)

fuzz: $(VENV)/.installed-fuzz
	$(BIN)/python -m tests.fuzz $(ARGS)

stress: $(VENV)/.installed-test
	$(BIN)/python -m tests.stress $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o \( -name __pycache__ -type d -o -name '*.so' \) -print0 | xargs -0 rm -rf

# The first interpreter that works and is new enough: a version manager's launcher may exist and refuse.
$(BIN)/python:
	@for python in $(PYTHON) python3.13 python3.12 python3.11 python3 python3.14; do \
		$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		if ! $$python -c 'import venv, ensurepip' 2>/dev/null; then \
			echo "enclavedbg: $$python has no venv module; install it: apt install python3-venv" >&2; exit 1; \
		fi; \
		echo "Making $(VENV) with $$($$python --version)" >&2; \
		exec $$python -m venv $(VENV); \
	done; \
	echo "enclavedbg: no Python 3.11 or newer found (python3 is $$(python3 --version 2>&1)); install one," \
		"or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	exit 1

$(VENV)/.installed: $(INPUTS) $(BIN)/python
	@echo "Installing into $(VENV)" >&2
	@$(PIP) install --editable .
	@ls enclavedbg/machine/cpu/soft/_native*.so >/dev/null 2>&1 || \
		echo "No native part was built (is there a C compiler? apt install gcc): the software CPU will be slower" >&2
	@touch $@

$(VENV)/.installed-%: $(INPUTS) $(BIN)/python
	@echo "Installing into $(VENV), with what '$*' needs" >&2
	@$(PIP) install --editable '.[$*]'
	@ls enclavedbg/machine/cpu/soft/_native*.so >/dev/null 2>&1 || \
		echo "No native part was built (is there a C compiler? apt install gcc): the software CPU will be slower" >&2
	@touch $@ $(VENV)/.installed
