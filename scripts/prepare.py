"""Prepares the records of a task; see tasks/prepare.py."""

from tasks.prepare import main

if __name__ == "__main__":
  main()
