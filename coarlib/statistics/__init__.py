"""Correlation, ranks, bootstrap and replicates; imports no other room."""
