"""Every expression of the dashboards, by who exports the metrics."""
