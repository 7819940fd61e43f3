"""ViT-B/16 on ImageNet: 82,944 neurons."""
