"""`enclavedbg eif measure FILE`: PCR0, PCR1, PCR2, and PCR8 of a signed image."""

from __future__ import annotations

import argparse
from pathlib import Path

from enclavedbg.eif.describe import measurements_json
from enclavedbg.eif.measure import Measurements, measure_file
from enclavedbg.eif.source import EifSource, open_source
from enclavedbg.eif.walk import walk_eif
from enclavedbg.verbs.eif.output import measuring_warnings, print_json, print_measurements, warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE and --json."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the enclave image")
    parser.add_argument("--json", action="store_true", help="as nitro-cli build-enclave prints them")


def run(options: argparse.Namespace) -> int:
    """Print the measurements; 0."""
    with open_source(options.file) as source:
        measurements = measure_source(source)
    if options.json:
        print_json({"Measurements": measurements_json(measurements)})
    else:
        print_measurements(measurements)
    return 0


def measure_source(source: EifSource) -> Measurements:
    """An image's measurements, with the warnings that go with them on standard error; raises EifError."""
    walk = walk_eif(source)
    measured = measure_file(source, walk)
    warn(measuring_warnings(walk, measured))
    return measured.measurements
