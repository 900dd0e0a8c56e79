"""The tables of `scripts/reproduce.py`: their rows, runs and pages."""
