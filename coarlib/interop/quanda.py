"""quanda's LinearDatamodeling by its own configuration: trained, cached and scored here.

The methods have quanda 0.5's signatures and write its files under ``bench_save_dir``, so that
either program goes on where the other stopped. All models, on subsets and on all data, start from
the trainer's seed; a model or a batch that is there is not computed again.
"""

from __future__ import annotations

import fcntl
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coarlib import scoring
from coarlib.errors import SetupError, StoreError
from coarlib.files import whole_file
from coarlib.interop.banks import read_quanda_logits, read_quanda_subsets, write_quanda_subsets
from coarlib.interop.quanda_config import dataset, folders, read_config, trainer
from coarlib.outputs import margin_log_sum_exp
from coarlib.retraining.trainer import Trainer
from coarlib.retraining.vectorised import train_many
from coarlib.scoring.score_files import load_scores, read_tensors
from coarlib.statistics.arrays import as_array

__all__ = ["LinearDatamodeling"]

Config = Mapping[str, Any] | str | Path


class LinearDatamodeling:
    """The LDS benchmark of a configuration.

    Parameters
    ----------
    config : dict, path of a YAML file, or name of a benchmark that quanda ships
    device : str
    batch_size : int
        Of training.
    """

    def __init__(self, config: Config, device: str = "cpu", batch_size: int = 64) -> None:
        self.config, self.device = read_config(config), device
        self.trainer: Trainer = trainer(self.config, batch_size)
        self._metadata, self.checkpoint = folders(self.config)
        settings = self.config.get("counterfactual_trainer") or self.config["model"]["trainer"]
        self.seed = int(settings.get("seed", 42))
        self.subset_ids = self._subsets()

    def _subsets(self) -> list[NDArray[np.int64]]:
        """Read the subsets, or draw and write them: permutations of one generator, in turn."""
        file = self._metadata / str(self.config.get("subset_ids", "lds_subsets.yaml"))
        number, total = int(self.config.get("m", 100)), self.trainer.num_examples
        if file.is_file():
            found = read_quanda_subsets(file)
            if len(found) != number:
                raise SetupError(f"{file} holds {len(found)} subsets, not m = {number}")
            return found
        generator = torch.Generator().manual_seed(int(self.config.get("seed", 42)))
        size = int(float(self.config.get("alpha", 0.5)) * total)
        drawn = [torch.randperm(total, generator=generator)[:size].numpy() for _ in range(number)]
        self._metadata.mkdir(parents=True, exist_ok=True)
        write_quanda_subsets(file, drawn)
        return drawn

    @classmethod
    def train(
        cls,
        config: Config,
        logger: Any = None,
        device: str = "cpu",
        batch_size: int = 64,
        skip_subsets: bool = False,
    ) -> LinearDatamodeling:
        """Train the model of all data and, unless ``skip_subsets``, those of subsets at once."""
        found = cls(config, device, batch_size)
        found._train([None, *(() if skip_subsets else range(len(found.subset_ids)))])
        return found

    @classmethod
    def train_subset(
        cls, config: Config, idx: int, device: str = "cpu", batch_size: int = 64
    ) -> LinearDatamodeling:
        """Train the model of subset ``idx``, as one task of an array job."""
        found = cls(config, device, batch_size)
        if not 0 <= idx < len(found.subset_ids):
            raise SetupError(f"there is no subset {idx} of {len(found.subset_ids)}")
        found._train([idx])
        return found

    @classmethod
    def load_pretrained(
        cls, bench_id: Config, cache_dir: str | None = None, device: str = "cpu"
    ) -> LinearDatamodeling:
        """Open a benchmark whose models lie in ``cache_dir`` (or its own ``bench_save_dir``).

        Nothing is downloaded: fetch the models with quanda or the hub's client.
        """
        config = read_config(bench_id)
        if cache_dir is not None:
            config["bench_save_dir"] = cache_dir
        found = cls(config, device)
        found.model(None)
        return found

    def _train(self, which: list[int | None]) -> None:
        todo = [i for i in which if not (self.checkpoint(i) / "model.safetensors").is_file()]
        everything = np.arange(self.trainer.num_examples)
        subsets = [everything if i is None else self.subset_ids[i] for i in todo]
        models = (
            train_many(self.trainer, subsets, [self.seed] * len(todo), self.device) if todo else []
        )
        for i, model in zip(todo, models, strict=True):
            _save(self.checkpoint(i), model, self.config["model"]["module"].get("args") or {})

    def model(self, idx: int | None) -> torch.nn.Module:
        """Load the model of subset ``idx``, or of all data (None), in evaluation mode.

        Raises
        ------
        StoreError
            If it has not been trained.
        """
        from safetensors.torch import load_file

        file = self.checkpoint(idx) / "model.safetensors"
        if not file.is_file():
            raise StoreError(f"there is no model {file}; train it first")
        model = self.trainer.new_model(0)
        model.load_state_dict(load_file(file), strict=False)  # tied weights are there once
        return model.to(self.device).eval()

    def _evaluated(
        self, max_eval_n: int | None = 1000, eval_seed: int = 42
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of the evaluation, subsampled as quanda does."""
        inputs, targets = dataset(self.config, "eval_dataset")
        if max_eval_n is None or max_eval_n >= len(inputs):
            return inputs, targets
        kept = sorted(random.Random(eval_seed).sample(range(len(inputs)), max_eval_n))
        return inputs[kept], targets[kept]

    @classmethod
    def cache_subset_logits(  # noqa: PLR0917 - the signature is quanda's
        cls,
        config: Config,
        batch_size: int = 8,
        cache_dir: str | None = None,
        device: str = "cpu",
        max_eval_n: int | None = 1000,
        eval_seed: int = 42,
    ) -> str:
        """Write ``{b}.pt``, {subset: logits [batch, C]} of every evaluation batch; return where."""
        found = cls(config, device)
        folder = Path(cache_dir or Path(found.config["bench_save_dir"]) / "subset_logits")
        folder.mkdir(parents=True, exist_ok=True)
        inputs, _ = found._evaluated(max_eval_n, eval_seed)
        logits = [found._logits(i, inputs) for i in range(len(found.subset_ids))]
        for number, start in enumerate(range(0, len(inputs), batch_size)):
            batch = {i: part[start : start + batch_size].clone() for i, part in enumerate(logits)}
            with whole_file(folder / f"{number}.pt") as stream:
                torch.save(batch, stream)
        return str(folder)

    @classmethod
    def cache_subset_logits_per_idx(  # noqa: PLR0917 - the signature is quanda's
        cls,
        config: Config,
        idx: int,
        batch_size: int = 8,
        cache_dir: str | None = None,
        device: str = "cpu",
        max_eval_n: int | None = 1000,
        eval_seed: int = 42,
    ) -> str:
        """Add the logits of subset ``idx`` to the files of :meth:`cache_subset_logits`.

        Workers may do so at the same time: each file is rewritten whole, under a lock.
        """
        found = cls(config, device)
        if not 0 <= idx < len(found.subset_ids):
            raise SetupError(f"there is no subset {idx} of {len(found.subset_ids)}")
        folder = Path(cache_dir or Path(found.config["bench_save_dir"]) / "subset_logits")
        folder.mkdir(parents=True, exist_ok=True)
        inputs, _ = found._evaluated(max_eval_n, eval_seed)
        parts = found._logits(idx, inputs).split(batch_size)
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for number, part in enumerate(parts):
                file = folder / f"{number}.pt"
                known = read_tensors(file) if file.is_file() else {}
                if not isinstance(known, dict) or any(len(x) != len(part) for x in known.values()):
                    raise SetupError(f"{file} holds something else than logits of this evaluation")
                with whole_file(file) as stream:
                    torch.save(dict(sorted({**known, idx: part.clone()}.items())), stream)
        return str(folder)

    def _logits(self, idx: int | None, inputs: torch.Tensor) -> torch.Tensor:
        model = self.model(idx)
        with torch.no_grad():
            parts = [model(part.to(self.device)) for part in inputs.split(256)]
        return torch.cat([getattr(part, "logits", part).float().cpu() for part in parts])

    @classmethod
    def explain(  # noqa: PLR0917 - the signature is quanda's
        cls,
        config: Config,
        explainer_cls: Any,
        expl_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 8,
        cache_dir: str | None = None,
        device: str = "cpu",
        max_eval_n: int | None = 1000,
        eval_seed: int = 42,
    ) -> LinearDatamodeling:
        """Write ``{b}.pt``, explanations [batch, N] of every evaluation batch.

        Parameters
        ----------
        explainer_cls : type
            One of quanda's explainers, or a class called as they are:
            ``explainer_cls(model=…, train_dataset=…, **expl_kwargs)`` with a method
            ``explain(test_data=…, targets=…)`` that returns [batch, N].
        """
        found = cls(config, device)
        folder = Path(cache_dir or Path(found.config["bench_save_dir"]) / "explanations")
        folder.mkdir(parents=True, exist_ok=True)
        explainer = found._explainer(explainer_cls, expl_kwargs)
        inputs, targets = found._evaluated(max_eval_n, eval_seed)
        pairs = zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
        for number, (batch, wanted) in enumerate(pairs):
            found_here = explainer.explain(test_data=batch.to(device), targets=wanted.to(device))
            with whole_file(folder / f"{number}.pt") as stream:
                torch.save(torch.as_tensor(found_here).cpu(), stream)
        return found

    def _explainer(self, kind: Any, options: Mapping[str, Any] | None) -> Any:
        data = torch.utils.data.TensorDataset(self.trainer.inputs, self.trainer.targets)
        return kind(model=self.model(None), train_dataset=data, **(options or {}))

    def margins(
        self,
        max_eval_n: int | None = 1000,
        eval_seed: int = 42,
        subset_logits_dir: str | None = None,
    ) -> NDArray[Any]:
        """Return the true label's margin under every subset's model, [M, T]; of kept logits."""
        inputs, targets = self._evaluated(max_eval_n, eval_seed)
        if subset_logits_dir is not None:
            logits = torch.from_numpy(read_quanda_logits(subset_logits_dir))
        else:
            count = range(len(self.subset_ids))
            logits = torch.stack([self._logits(i, inputs) for i in count])
        return torch.stack([margin_log_sum_exp(part, targets) for part in logits]).numpy()

    def evaluate(  # noqa: PLR0917 - the signature is quanda's
        self,
        explainer_cls: Any = None,
        expl_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 8,
        max_eval_n: int | None = 1000,
        eval_seed: int = 42,
        cache_dir: str | None = None,
        use_cached_expl: bool = False,
        subset_logits_dir: str | None = None,
        scores: Any = None,
    ) -> dict[str, float]:
        """Score an explainer, cached explanations, or any ``scores`` [N, T].

        Returns
        -------
        dict
            ``score``, the mean correlation (the configuration's ``correlation_fn``) over the
            evaluated examples, and the ends of its 95% interval, ``ci_low`` and ``ci_high``.
        """
        if scores is None and use_cached_expl:
            if cache_dir is None:
                raise SetupError("use_cached_expl needs the cache_dir of the explanations")
            scores = load_scores(cache_dir)
        elif scores is None:
            explainer = self._explainer(explainer_cls, expl_kwargs)
            pairs = self._evaluated(max_eval_n, eval_seed)
            batches = zip(*(part.to(self.device).split(batch_size) for part in pairs), strict=True)
            made = [explainer.explain(test_data=x, targets=y) for x, y in batches]
            scores = np.concatenate([as_array(part) for part in made]).T
        masks = scoring.masks_from_indices(self.subset_ids, self.trainer.num_examples)
        margins = self.margins(max_eval_n, eval_seed, subset_logits_dir)
        kind = str(self.config.get("correlation_fn", "spearman"))
        found = scoring.lds(scores, masks, margins, kind)  # type: ignore[arg-type]
        ends = {}
        if found.interval is not None:
            ends = {"ci_low": float(found.interval.low), "ci_high": float(found.interval.high)}
        return {"score": float(found.mean), **ends}


def _save(folder: Path, model: torch.nn.Module, arguments: Mapping[str, Any]) -> None:
    """Write a model as the hub's mixin does; the weights last."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "config.json", "w") as text:
        text.write(json.dumps(dict(arguments)) + "\n")
    state = {name: part.detach().cpu().clone() for name, part in model.state_dict().items()}
    with whole_file(folder / "model.safetensors") as file:
        file.write(save(state))
