"""Prometheus' rules and the runbook's tables, built from prometheus/definitions.yml and prometheus/xids.yml."""
