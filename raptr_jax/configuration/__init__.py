"""A run's configuration: gin files, overrides, macros; the only room with gin."""
