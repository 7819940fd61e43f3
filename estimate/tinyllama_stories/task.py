"""Mean token margins of the TinyStories Llama, with attention heads and MLP neurons ablated."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from coarlib.ablation import ComponentSet, ComponentTask, Examples, find_components
from coarlib.inputs.text import causal_examples, read_texts, trimmed
from coarlib.outputs import margin, per_sequence
from estimate.tinyllama_stories.model import TinyLlama, Tokenizer, read_model

WHERE_MODEL = (
    "download stories260K.bin and tok512.bin from huggingface.co/karpathy/tinyllamas (stories260K) "
    "and give their places as --expt.model_path and --expt.tokenizer_path"
)
WHERE_STORIES = "give a JSON list of stories (texts of TinyStories) as --expt.data_path"


class TinyLlamaTask(ComponentTask):
    """40 attention heads and 860 MLP neurons; one output a story.

    Parameters
    ----------
    model_path, tokenizer_path : str
        Files of llama2.c.
    data_path : str
        JSON list of stories; the first ``num_stories`` are used.
    num_stories, num_tokens : int
        How many stories, and how many tokens of each at most.
    """

    outputs: ClassVar = {"test_margins": per_sequence(margin)}
    rows_per_batch = 20

    def __init__(
        self,
        model_path: str,
        tokenizer_path: str,
        data_path: str,
        *,
        num_stories: int = 50,
        num_tokens: int = 128,
        batch_size: int | None = None,
        autocast: str = "auto",
        ablate: str = "zero_weights",
        compiled: bool | None = None,
    ) -> None:
        super().__init__(
            batch_size, fuse=False, autocast=autocast, ablate=ablate, compiled=compiled
        )
        self.model_path, self.tokenizer_path = Path(model_path), Path(tokenizer_path)
        self.data_path, self.num_stories, self.num_tokens = data_path, num_stories, num_tokens

    def model(self) -> TinyLlama:
        """Return the language model."""
        return read_model(self.model_path, WHERE_MODEL)

    def components(self, model: nn.Module) -> ComponentSet:
        """Heads and neurons, layer by layer."""
        return find_components(model, ["attention_head", "mlp_neuron"])

    def examples(self) -> Examples:
        """Return the stories, padded on the right."""
        vocabulary = self.model().embedding.num_embeddings
        tokenizer = Tokenizer(self.tokenizer_path, vocabulary, WHERE_MODEL)
        tokens = [tokenizer.encode(story) for story in self.texts()]
        return causal_examples(tokens, longest=self.num_tokens)

    def texts(self) -> list[str]:
        """Return the stories."""
        return read_texts(self.data_path, WHERE_STORIES, self.num_stories)[: self.num_stories]

    def transform(self, batch: Examples) -> Examples:
        """Cut the padding that a batch does not need."""
        return trimmed(batch)

    def predict(self, network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return logits [T, L, V]; causal attention needs no mask for padding on the right."""
        return network(inputs[0])
