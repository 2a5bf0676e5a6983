"""Engines: their addresses, states, models, connections and slots; probes and scrapes; the choice of one."""
