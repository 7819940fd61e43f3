"""ResNet-50 on ImageNet: 22,720 conv filters."""
