"""Reading texts and turning them into examples of causal language models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from coarlib.ablation.examples import Examples
from coarlib.errors import SetupError
from coarlib.loading import parse_json
from coarlib.outputs import next_tokens


def read_texts(path: str | Path, where_to_get: str, count: int) -> list[str]:
    """Read at least ``count`` texts of a JSON list, or of a text file with one text a line.

    Parameters
    ----------
    path : str or Path
    where_to_get : str
        What to say if there is no file: what to get from where.
    count : int

    Raises
    ------
    SetupError
        If the file is missing, holds something else, or fewer texts.
    """
    path = Path(path)
    if not path.is_file():
        raise SetupError(f"there are no texts at {path}; {where_to_get}")
    try:
        content = path.read_text(encoding="utf-8")
        texts = (
            parse_json(content, str(path), SetupError)
            if path.suffix == ".json"
            else content.splitlines()
        )
    except UnicodeDecodeError as error:
        raise SetupError(f"{path} is neither a JSON list of texts nor a text file") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise SetupError(f"{path} must hold a list of texts")
    if len(texts) < count:
        raise SetupError(f"{path} holds {len(texts)} texts, not {count}")
    return texts


def causal_examples(sequences: Sequence[Sequence[int]], longest: int) -> Examples:
    """Pad token sequences on the right.

    Parameters
    ----------
    sequences : sequence of T sequences of int
        At least two tokens each.
    longest : int
        Longer sequences are cut.

    Returns
    -------
    Examples
        Inputs are tokens and attention mask, int64 [T, L]; targets the next tokens.

    Raises
    ------
    SetupError
        If a sequence has fewer than two tokens, so that there is nothing to predict.
    """
    cut = [list(sequence[:longest]) for sequence in sequences]
    for row, sequence in enumerate(cut):
        if len(sequence) < 2:
            raise SetupError(f"text {row} has {len(sequence)} tokens; at least 2 are needed")
    shape = len(cut), max(map(len, cut))
    tokens, attention = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, sequence in enumerate(cut):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
        attention[row, : len(sequence)] = 1
    return Examples((tokens, attention), next_tokens(tokens, attention))


def trimmed(batch: Examples) -> Examples:
    """Cut a batch of :func:`causal_examples` to its longest sequence."""
    length = int(batch.inputs[1].sum(1).max())
    return Examples(tuple(x[:, :length] for x in batch.inputs), batch.targets[:, :length])
