"""Admission: which request may use an engine now, which is queued, which is refused at once."""
