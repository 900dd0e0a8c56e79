"""Architectures: each a `contracts.Model` over the one `MaskedStack`."""
