"""Bulk scoring of brain-MRI slices: what scores."""

__version__ = "0.1.0"
