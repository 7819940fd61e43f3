"""Commands that turn rows into attributions."""
