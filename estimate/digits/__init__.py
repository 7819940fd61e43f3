"""The default set-up: 240 filters of a small residual CNN on handwritten digits."""
