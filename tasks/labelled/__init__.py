"""Texts with labels, to fine-tune on: tasks, and the files that have them."""
