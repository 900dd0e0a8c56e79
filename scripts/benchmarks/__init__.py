"""The suites of `scripts/benchmark.py`: what they run, and how they time it."""
