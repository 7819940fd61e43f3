"""Commands that judge attributions, and what follows from them."""
