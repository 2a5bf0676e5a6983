"""What the operator sees: every metric in one place, and the log."""
