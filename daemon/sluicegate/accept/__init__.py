"""Accepting: sockets, HTTP, and what of it becomes a Request for the pipeline."""
