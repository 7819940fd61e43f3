"""A task module on the pattern of datamodels' examples: fastargs sections, parsed inside main."""

import sys
from argparse import ArgumentParser

import numpy as np
from fastargs import Param, Section, get_current_config
from fastargs.decorators import param

Section("training", "Hyperparameters").params(
    lr=Param(float, "The learning rate to use", default=0.5),
    epochs=Param(int, "Number of epochs to run for", required=True),
    lr_tta=Param(bool, "Test time augmentation", is_flag=True),
)
Section("data", "data related stuff").params(
    train_dataset=Param(str, "file to use for training", default="train.beton"),
)


@param("training.lr")
@param("training.epochs")
@param("training.lr_tta")
@param("data.train_dataset")
def train(mask, lr=None, epochs=None, lr_tta=False, train_dataset=None):
    assert train_dataset == "mine.beton" and sys.argv[1].startswith("--")
    return (mask[:3] * lr + epochs + 100 * lr_tta).astype(np.float32)


def main(index, logdir):
    config = get_current_config()
    parser = ArgumentParser(description="Fast training")
    config.augment_argparse(parser)
    config.collect_argparse_args(parser)
    config.validate(mode="stderr")
    config.summary()
    mask = np.random.default_rng(index).random(10) > 0.5
    return {"masks": mask, "margins": train(mask)}
