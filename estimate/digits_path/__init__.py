"""Handwritten digits by a small MLP, trained by SGD with a history."""
