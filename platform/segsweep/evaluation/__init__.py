"""Metrics by the organisers' own rules, intervals and reports."""
