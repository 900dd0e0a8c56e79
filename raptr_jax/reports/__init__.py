"""The record of a run: entries, page, picture and provenance."""
