"""Measurements of quality, speed and robustness: `python -m benchmarks.NAME`."""
