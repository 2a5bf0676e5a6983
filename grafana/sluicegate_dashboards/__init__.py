"""The five dashboards as code. Read names, then queries, panels and layout, then one of dashboards/."""
