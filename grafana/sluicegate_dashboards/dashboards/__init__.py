"""The five dashboards: which panels, in which order, and what each says to its reader."""
