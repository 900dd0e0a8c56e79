"""The files with which a method, a model or a task of one's own begins."""
