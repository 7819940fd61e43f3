"""Peers' documented functions take here what their pages print, by position and by name."""

import inspect

import pytest

from coarlib.interop import dattri, explaind
from coarlib.interop.quanda import LinearDatamodeling as Lds

REQUIRED = inspect.Parameter.empty
DATTRI = {
    "retrain_loo": {"train_func": REQUIRED, "dataloader": REQUIRED, "path": REQUIRED,
                    "indices": None, "seed": None},
    "retrain_lds": {"train_func": REQUIRED, "dataloader": REQUIRED, "path": REQUIRED,
                    "num_subsets": 100, "subset_ratio": 0.5, "num_runs_per_subset": 1,
                    "start_id": 0, "total_num_subsets": 0, "seed": None},
    "calculate_loo_ground_truth": {"target_func": REQUIRED, "retrain_dir": REQUIRED,
                                   "test_dataloader": REQUIRED},
    "calculate_lds_ground_truth": {"target_func": REQUIRED, "retrain_dir": REQUIRED,
                                   "test_dataloader": REQUIRED},
    "flip_label": {"label": REQUIRED, "label_space": None, "p": 0.1},
    "lds": {"score": REQUIRED, "ground_truth": REQUIRED},
    "loo_corr": {"score": REQUIRED, "ground_truth": REQUIRED},
    "mislabel_detection_auc": {"score": REQUIRED, "ground_truth": REQUIRED},
    "load_benchmark": {"model": REQUIRED, "dataset": REQUIRED, "metric": REQUIRED},
}  # fmt: skip
# Functions and the keywords with which the pages of quanda and ExPLAIND call them.
CALLED = [
    (Lds.train, ["config"], ["device", "skip_subsets"]),
    (Lds.train_subset, ["config"], ["idx", "device"]),
    (Lds.load_pretrained, [], ["bench_id", "cache_dir", "device"]),
    (Lds.explain, [], ["config", "explainer_cls", "expl_kwargs", "cache_dir", "device",
                       "batch_size"]),
    (Lds.cache_subset_logits, [], ["config", "cache_dir", "device", "batch_size"]),
    (Lds.cache_subset_logits_per_idx, ["config"], ["idx", "cache_dir", "device", "batch_size"]),
    (Lds.evaluate, ["self"], ["explainer_cls", "expl_kwargs", "cache_dir", "use_cached_expl",
                              "subset_logits_dir", "batch_size"]),
    (explaind.ModelPath, ["model"], ["device", "checkpoint_path"]),
    (explaind.AdamWOptimizerPath, ["model"], ["checkpoint_path"]),
    (explaind.DataPath, ["loader"], ["checkpoint_path", "overwrite", "full_batch"]),
    (explaind.RegularizedCrossEntropyLoss, [], ["alpha", "p", "device"]),
    (explaind.ExactPathKernelModel, [], ["model", "optimizer", "loss_fn", "data_path",
                                         "integral_eps", "evaluate_predictions",
                                         "keep_param_wise_kernel",
                                         "param_wise_kernel_keep_out_dims"]),
    (explaind.ExactPathKernelModel.predict, ["self", "X"], ["y_test", "keep_kernel_matrices"]),
]  # fmt: skip


@pytest.mark.parametrize("name", DATTRI)
def test_dattris_functions_have_dattris_parameters_first(name):
    found = inspect.signature(getattr(dattri, name)).parameters
    for (ours, parameter), (theirs, default) in zip(
        found.items(), DATTRI[name].items(), strict=False
    ):
        assert ours == theirs and parameter.default == default
    for more, parameter in list(found.items())[len(DATTRI[name]) :]:
        optional = parameter.default is not REQUIRED
        assert optional or parameter.kind is parameter.VAR_KEYWORD, more


@pytest.mark.parametrize("function, positional, keywords", CALLED)
def test_functions_take_what_the_pages_give_them(function, positional, keywords):
    inspect.signature(function).bind(*positional, **dict.fromkeys(keywords))
