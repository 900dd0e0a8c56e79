"""Everything about a run: what it is made of, will do, does and leaves."""
