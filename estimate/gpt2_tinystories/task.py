"""Mean token margins of GPT-2 on TinyStories, with components ablated."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from coarlib.ablation import ComponentSet, ComponentTask, Examples, preset
from coarlib.errors import SetupError
from coarlib.inputs.text import causal_examples, read_texts, trimmed
from coarlib.outputs import margin, per_sequence

HUB_DATA = "roneneldan/TinyStories"
WHERE = (
    f"give --expt.data_path a JSON list of stories, or leave it out to download {HUB_DATA} "
    "(needs the datasets package and the internet)"
)


class Gpt2Task(ComponentTask):
    """GPT-2 small; 64,512 components: the inputs of its Conv1D layers, as upstream.

    Parameters
    ----------
    model_path : str
        A folder that ``from_pretrained`` reads, or a name on the Hugging Face hub.
    data_path : str
        JSON list of stories, or a name on the hub; the last ``num_stories`` are used.
    num_stories : int
        500, as upstream.
    num_workers : int
        Accepted for upstream's commands; stories are tokenised once, in this process.
    """

    outputs: ClassVar = {"test_margins": per_sequence(margin)}
    rows_per_batch = 2

    def __init__(
        self,
        model_path: str = "gpt2",
        data_path: str = HUB_DATA,
        *,
        num_stories: int = 500,
        batch_size: int | None = None,
        autocast: str = "auto",
        ablate: str = "zero_weights",
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, fuse=False, autocast=autocast, ablate=ablate)
        self.model_path, self.data_path, self.num_stories = model_path, data_path, num_stories

    def model(self) -> nn.Module:
        """Return the language model."""
        return self._pretrained("GPT2LMHeadModel")

    def components(self, model: nn.Module) -> ComponentSet:
        """Return upstream's component set."""
        return preset("gpt2_tinystories", model)

    def examples(self) -> Examples:
        """Return the last stories of the validation set, in order, padded on the right."""
        tokenizer = self._pretrained("GPT2Tokenizer")
        stories = tokenizer(self.texts(), truncation=True, max_length=tokenizer.model_max_length)
        return causal_examples(stories["input_ids"], longest=tokenizer.model_max_length)

    def transform(self, batch: Examples) -> Examples:
        """Cut the padding that a batch does not need."""
        return trimmed(batch)

    def predict(self, network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return logits [T, L, V]."""
        tokens, attention = inputs
        return network(tokens, attention_mask=attention, use_cache=False).logits

    def _pretrained(self, name: str) -> Any:
        try:
            import transformers
        except ImportError as error:
            raise SetupError("GPT-2 needs transformers; pip install 'coarlib[hf]'") from error
        local = Path(self.model_path).exists()
        try:
            kind = getattr(transformers, name)
            return kind.from_pretrained(self.model_path, local_files_only=local)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise SetupError(
                f"cannot load {name} from {self.model_path} ({reason}); download gpt2 from the "
                "Hugging Face hub and give its folder as --expt.model_path"
            ) from error

    def texts(self) -> list[str]:
        """Return the stories."""
        if self.data_path != HUB_DATA or Path(self.data_path).exists():
            return read_texts(self.data_path, WHERE, self.num_stories)[-self.num_stories :]
        try:
            import datasets

            stories = datasets.load_dataset(HUB_DATA, split="validation")["text"]
        except (ImportError, OSError) as error:
            raise SetupError(f"there are no stories ({error}); {WHERE}") from error
        return list(stories[-self.num_stories :])
