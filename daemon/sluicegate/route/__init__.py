"""Routing: which engines there are, how each is doing, and which one takes a request."""
