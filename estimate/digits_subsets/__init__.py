"""Set-up: models retrained on random halves of scikit-learn's handwritten digits."""
