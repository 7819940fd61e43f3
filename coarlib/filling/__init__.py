"""Filling rows: the worker, what a task may return, stopping, outputs added later."""
