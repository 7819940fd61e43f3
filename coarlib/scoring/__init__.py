"""Judging attributions: rank correlation, LDS, and the other metrics of the field."""
