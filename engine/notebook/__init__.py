"""Runs as Python code meets them: an iterator of results with arrays."""
