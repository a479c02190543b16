"""Measurements; each is run as `python -m benchmarks.NAME` and prints one line of strict JSON."""
