"""Pretraining transformers for less, with random paths of their layers."""
