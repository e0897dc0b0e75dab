"""The peers of the speed benchmarks: the same job, each in a file of its own, as its own documentation writes it."""
