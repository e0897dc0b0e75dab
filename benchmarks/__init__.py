"""Benchmarks: `python -m benchmarks.NAME [--quick] [--seed N] --json`; what is kept is in `results/`."""
