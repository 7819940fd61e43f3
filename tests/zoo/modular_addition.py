"""The one-layer transformer that adds modulo 113, from the progress-measures checkpoint."""

import math

import torch
from torch import nn
from torch.nn import functional as F

MODULUS = 113


class Attention(nn.Module):
    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, hidden):
        count, length, width = hidden.shape

        def split(projected):
            return projected.view(count, length, self.num_heads, -1).transpose(1, 2)

        queries, keys, values = (
            split(projection(hidden)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(width // self.num_heads)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mixed = scores.masked_fill(~causal, -torch.inf).softmax(3) @ values
        return self.out_proj(mixed.transpose(1, 2).reshape(count, length, width))


class Adder(nn.Module):
    """Logits [T, 113] at the last position of tokens [T, 3] = (a, b, 113)."""

    def __init__(self, width=128, heads=4, neurons=512):
        super().__init__()
        self.embedding = nn.Embedding(MODULUS + 1, width)
        self.positions = nn.Parameter(torch.zeros(3, width))
        self.attention = Attention(width, heads)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, neurons), nn.Linear(neurons, width)
        self.unembedding = nn.Linear(width, MODULUS + 1, bias=False)

    def forward(self, tokens):
        hidden = self.embedding(tokens) + self.positions
        hidden = (hidden + self.attention(hidden))[:, -1]
        hidden = hidden + self.mlp.fc2(F.relu(self.mlp.fc1(hidden)))
        return self.unembedding(hidden)[:, :MODULUS]


def load_adder(path):
    saved = torch.load(path, weights_only=True)
    saved = saved.get("state_dict", saved)
    block, model = "blocks.0.", Adder()
    rows = {key: saved[f"{block}attn.W_{key}"].flatten(0, 1) for key in "QKV"}
    state = {
        "embedding.weight": saved["embed.W_E"].T,
        "positions": saved["pos_embed.W_pos"],
        "attention.q_proj.weight": rows["Q"],
        "attention.k_proj.weight": rows["K"],
        "attention.v_proj.weight": rows["V"],
        "attention.out_proj.weight": saved[f"{block}attn.W_O"],
        "mlp.fc1.weight": saved[f"{block}mlp.W_in"],
        "mlp.fc1.bias": saved[f"{block}mlp.b_in"],
        "mlp.fc2.weight": saved[f"{block}mlp.W_out"],
        "mlp.fc2.bias": saved[f"{block}mlp.b_out"],
        "unembedding.weight": saved["unembed.W_U"].T,
    }
    model.load_state_dict(state)
    return model.eval()


def sums(every=1):
    """Tokens int64 [T, 3] and answers [T] of every so-many-th of the 12,769 sums."""
    pairs = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))[::every]
    tokens = torch.cat([pairs, torch.full((len(pairs), 1), MODULUS)], 1)
    return tokens, pairs.sum(1) % MODULUS
