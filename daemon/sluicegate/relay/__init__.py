"""Relay: connections to the engine, and the way of an answer from there to the client."""
