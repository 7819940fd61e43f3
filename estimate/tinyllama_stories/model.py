"""A small Llama and its tokenizer, read from the files of llama2.c.

The ``.bin`` file: seven int32 (dim, hidden, layers, heads, key–value heads, vocabulary, longest
sequence), then float32 weights layer-stacked by kind; the output layer is the embedding. The
tokenizer file: an int32, then for each token a float32 score, an int32 length and its bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from coarlib.errors import SetupError

NORM_EPSILON = 1e-5
ROTARY_BASE = 10_000.0
BEGIN, FIRST_BYTE = 1, 3


class Attention(nn.Module):
    """Causal attention with rotary positions (interleaved pairs) and grouped key–value heads."""

    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.num_heads, self.kv_heads, self.size = heads, kv_heads, dim // heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * self.size, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * self.size, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, hidden: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """Map ``[T, L, dim]`` to ``[T, L, dim]``; ``rotation`` is complex [L, head_dim / 2]."""
        count, length, _ = hidden.shape

        def split(projection: nn.Linear) -> torch.Tensor:
            return projection(hidden).view(count, length, -1, self.size).transpose(1, 2)

        queries, keys = (_rotated(split(p), rotation) for p in (self.q_proj, self.k_proj))
        group = self.num_heads // self.kv_heads
        keys = keys.repeat_interleave(group, 1)
        values = split(self.v_proj).repeat_interleave(group, 1)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(count, length, -1))


class SwiGLU(nn.Module):
    """The gated MLP of Llama."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map ``[T, L, dim]`` to ``[T, L, dim]``."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class Layer(nn.Module):
    """Attention and MLP, each normed before and added to what came in."""

    def __init__(self, dim: int, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, NORM_EPSILON)
        self.attention = Attention(dim, heads, kv_heads)
        self.mlp_norm = nn.RMSNorm(dim, NORM_EPSILON)
        self.mlp = SwiGLU(dim, hidden)

    def forward(self, hidden: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """Map ``[T, L, dim]`` to ``[T, L, dim]``."""
        hidden = hidden + self.attention(self.attention_norm(hidden), rotation)
        return hidden + self.mlp(self.mlp_norm(hidden))


class TinyLlama(nn.Module):
    """The language model; ``forward`` takes tokens int64 [T, L] and gives logits [T, L, V]."""

    def __init__(
        self, dim: int, hidden: int, *, layers: int, heads: int, kv_heads: int, vocabulary: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(Layer(dim, hidden, heads, kv_heads) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, NORM_EPSILON)
        self.head_size = dim // heads

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token at every position."""
        half = torch.arange(0, self.head_size, 2, device=tokens.device) / self.head_size
        angles = torch.outer(
            torch.arange(tokens.shape[1], device=tokens.device), ROTARY_BASE**-half
        )
        rotation = torch.polar(torch.ones_like(angles), angles)
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden, rotation)
        return F.linear(self.norm(hidden), self.embedding.weight)


def _rotated(heads: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(heads.reshape(*heads.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2)


def read_model(path: Path, where_to_get: str) -> TinyLlama:
    """Read a legacy llama2.c checkpoint.

    Raises
    ------
    SetupError
        If the file is missing or not of that format.
    """
    if not path.is_file():
        raise SetupError(f"there is no model at {path}; {where_to_get}")
    data = path.read_bytes()
    if len(data) < 28:
        raise SetupError(f"{path} is not a llama2.c checkpoint")
    dim, hidden, layers, heads, kv_heads, vocabulary, longest = struct.unpack("<7i", data[:28])
    kv_dim = dim * kv_heads // max(heads, 1)
    stacked = {
        "attention_norm.weight": (dim,),
        "attention.q_proj.weight": (dim, dim),
        "attention.k_proj.weight": (kv_dim, dim),
        "attention.v_proj.weight": (kv_dim, dim),
        "attention.o_proj.weight": (dim, dim),
        "mlp_norm.weight": (dim,),
        "mlp.gate_proj.weight": (hidden, dim),
        "mlp.down_proj.weight": (dim, hidden),
        "mlp.up_proj.weight": (hidden, dim),
    }
    per_layer = sum(int(np.prod(shape)) for shape in stacked.values())
    rotary = longest * (dim // max(heads, 1))
    wanted = 28 + 4 * (vocabulary * dim + layers * per_layer + dim + rotary)
    if min(dim, hidden, layers, heads, kv_heads, vocabulary) < 1 or len(data) != wanted:
        raise SetupError(f"{path} is not a llama2.c checkpoint with shared embedding")
    numbers = torch.from_numpy(np.frombuffer(data, "<f4", offset=28).copy())
    state, at = (
        {"embedding.weight": numbers[: vocabulary * dim].view(vocabulary, dim)},
        vocabulary * dim,
    )
    for key, shape in stacked.items():
        size = int(np.prod(shape))
        for layer in range(layers):
            state[f"layers.{layer}.{key}"] = numbers[at : at + size].view(shape)
            at += size
    state["norm.weight"] = numbers[at : at + dim]
    options = {"layers": layers, "heads": heads, "kv_heads": kv_heads, "vocabulary": vocabulary}
    model = TinyLlama(dim, hidden, **options)
    model.load_state_dict(state)
    return model.eval()


class Tokenizer:
    """Byte-pair encoding by scores: the best-scored adjacent pair is merged until none is left.

    Parameters
    ----------
    path : Path
    vocabulary : int
        Number of tokens in the file.

    Raises
    ------
    SetupError
        If the file is missing or not of that format.
    """

    def __init__(self, path: Path, vocabulary: int, where_to_get: str) -> None:
        if not path.is_file():
            raise SetupError(f"there is no tokenizer at {path}; {where_to_get}")
        data, at = path.read_bytes(), 4
        self.scores: list[float] = []
        self.ids: dict[bytes, int] = {}
        try:
            for index in range(vocabulary):
                score, length = struct.unpack_from("<fi", data, at)
                self.scores.append(score)
                self.ids.setdefault(data[at + 8 : at + 8 + length], index)
                at += 8 + length
        except struct.error as error:
            raise SetupError(
                f"{path} is not a llama2.c tokenizer of {vocabulary} tokens"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, with the begin token first."""
        pieces = []
        for character in " " + text:
            raw = character.encode()
            known = raw in self.ids
            pieces += [raw] if known else [bytes([byte]) for byte in raw]
        tokens = [self.ids.get(piece, FIRST_BYTE + piece[0]) for piece in pieces]
        while True:
            merged = [
                (self.scores[token], -place, token)
                for place in range(len(pieces) - 1)
                if (token := self.ids.get(pieces[place] + pieces[place + 1], -1)) >= 0
            ]
            if not merged:
                return [BEGIN, *tokens]
            _, place, token = max(merged)
            pieces[-place : 2 - place] = [pieces[-place] + pieces[1 - place]]
            tokens[-place : 2 - place] = [token]
