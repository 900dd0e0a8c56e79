"""The theory tables of `scripts/reproduce.py`: numerics behind the paper."""
