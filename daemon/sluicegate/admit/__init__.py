"""Admission: which request may use the engine now, which waits, which is turned away at once."""
