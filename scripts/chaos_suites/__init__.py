"""The suites of `scripts/chaos.py`."""
