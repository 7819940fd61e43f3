"""Commands to start with: the demo, and a set-up of one's own."""
