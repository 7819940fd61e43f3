"""The runnable modules (``python -m estimate.X`` or ``coar X``) and the set-ups."""
