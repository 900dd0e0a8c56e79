"""Tasks prepared as records: preparation, files, and reading order."""
