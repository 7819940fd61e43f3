"""CIFAR-10 residual networks: the one of COAR (2,304 filters) and those of He et al."""
