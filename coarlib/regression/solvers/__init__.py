"""Solvers: one module each."""
