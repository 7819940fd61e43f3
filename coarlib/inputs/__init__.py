"""What set-ups read: images, texts, checkpoints."""
