"""Benchmarks: each subject beside a peer and beside the limit of the machine, in the same run."""
