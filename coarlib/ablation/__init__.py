"""Component sets of any ``nn.Module``, ways to ablate them, and outputs under ablation."""
