"""Adapters that put our models and methods into other programs."""
