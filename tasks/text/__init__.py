"""Where text comes from, and the vocabularies that encode it."""
