"""What enclavedbg costs, measured: `make bench`, or `python -m benchmarks [NAME ...]`. See docs/benchmarks.md.

Nothing here is asserted by a test: times of a busy machine say nothing about a change. Whatever has a peer is
measured against it in turns in the same run, and the ratio is the figure to look at.
"""
