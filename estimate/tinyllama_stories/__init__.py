"""The 260K-parameter TinyStories Llama: 40 attention heads and 860 MLP neurons."""
