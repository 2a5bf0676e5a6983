"""Sluicegate: the gate in front of a GPU."""

__version__ = "0.1.0"
