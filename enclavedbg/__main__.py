"""`python -m enclavedbg`."""

from __future__ import annotations

import sys

from enclavedbg.cli import main

sys.exit(main())
