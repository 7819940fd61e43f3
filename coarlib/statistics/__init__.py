"""Correlation, ranks, influences and intervals; imports no other room."""
