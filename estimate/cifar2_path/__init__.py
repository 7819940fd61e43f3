"""Two classes of CIFAR-10 by a ResNet without batch norm, trained by SGD with a history."""
