"""COAR's four set-ups: component counts, masking semantics, commands, and what is missing."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import randomised
from torchvision_like import ResNet50Like, ViTLike

from coarlib.ablation import preset
from coarlib.errors import CoarlibError, SetupError
from coarlib.outputs import margin
from coarlib.store import Store, initialize
from coarlib.store.spec import load_spec
from estimate.cifar_resnet import make_dataset as cifar_make_dataset
from estimate.cifar_resnet.model import coar_resnet, from_weights, he_resnet
from estimate.cifar_resnet.task import CifarTask
from estimate.gpt2_tinystories import make_dataset as gpt2_make_dataset
from estimate.gpt2_tinystories.task import Gpt2Task
from estimate.imagenet_resnet import make_dataset as resnet_make_dataset
from estimate.imagenet_resnet.task import ImagenetResnetTask
from estimate.imagenet_vit import make_dataset as vit_make_dataset
from estimate.imagenet_vit.task import ImagenetVitTask

CPU = torch.device("cpu")
TOLERANCE = 1e-5
SPECS = Path(__file__).parents[2] / "specs"
STORIES = ["Once upon a time.", "The cat sat on the mat and was happy.", "A b", "Tom ran!"]


def width(spec):
    return load_spec(SPECS / f"{spec}.json").schema["masks"].shape[0]


@pytest.fixture
def images(tmp_path):
    """Files of random images by size."""

    def make(size, count=6, classes=10):
        rng = np.random.default_rng(size)
        x = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{size}.npz", x=x, y=np.arange(count) % classes)
        return str(tmp_path / f"{size}.npz")

    return make


@pytest.fixture
def gpt2(tmp_path):
    """A folder with a tiny random GPT-2 and a byte-level tokenizer, and a file of stories."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=257, n_embd=8, n_layer=2, n_head=2, n_positions=32, bos_token_id=256
    )
    model = transformers.GPT2LMHeadModel(config)
    randomised(model)
    model.save_pretrained(tmp_path / "gpt2")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    vocabulary = {symbol: index for index, symbol in enumerate([*symbols, "<|endoftext|>"])}
    (tmp_path / "gpt2" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "gpt2" / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "gpt2" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "model_max_length": 32})
    )
    (tmp_path / "stories.json").write_text(json.dumps(["not used", *STORIES]))
    return str(tmp_path / "gpt2"), str(tmp_path / "stories.json")


def small_imagenet(task_class, model):
    class Small(task_class):
        def network(self, pretrained):
            return copy.deepcopy(model)

    return Small


def expected_rows(task, masks):
    """Deep copies with weight rows zeroed one index at a time, in float32."""
    model = task.model().eval()
    components = task.components(model)
    batch = task.transform(task.examples())
    (output,) = task.outputs.values()
    found = []
    for mask in masks:
        ablated = copy.deepcopy(model)
        for index in np.flatnonzero(~mask):
            group, unit = components.locate(int(index))
            assert group.axis == 0 and group.width == 1
            with torch.no_grad():
                ablated.get_parameter(group.path)[unit] = 0
        with torch.no_grad():
            found.append(output(task.predict(ablated, batch.inputs), batch.targets))
    return torch.stack(found)


def check_semantics(task):
    task.prepare(CPU)
    masks = np.random.default_rng(0).random((4, task.num_features)) < 0.9
    masks[0] = True
    (found,) = task.rows(np.arange(4), masks).values()
    expected = expected_rows(task, masks)
    scale = float(expected.abs().max())
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * scale)
    assert ((found[1:] - found[0]).abs().amax(1) > 100 * TOLERANCE * scale).all()


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("cifar_resnet", coar_resnet),
        ("imagenet_resnet", ResNet50Like),
        ("imagenet_vit", ViTLike),
    ],
)
def test_presets_have_the_published_number_of_components(name, build):
    with torch.device("meta"):
        components = preset(name, build())
    assert len(components) == width(name) == width(f"{name}_test")


def test_the_gpt2_preset_has_the_published_number_of_components():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        components = preset(
            "gpt2_tinystories", transformers.GPT2LMHeadModel(transformers.GPT2Config())
        )
    assert len(components) == width("gpt2_tinystories") == 64512
    assert components.sizes[:4] == [768, 768, 768, 3072]
    assert {group.kind for group in components} == {"conv1d_input"}


def test_torchvision_itself_has_them_too():
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        assert len(preset("imagenet_resnet", models.resnet50())) == 22720
        assert len(preset("imagenet_vit", models.vit_b_16())) == 82944


@pytest.mark.parametrize(("depth", "filters"), [(20, 688), (32, 1136), (56, 2032)])
def test_he_resnets_have_their_filters(depth, filters):
    assert len(preset("cifar_resnet", he_resnet(depth))) == filters
    assert width("cifar_resnet20") == 688


@pytest.mark.parametrize("build", [lambda: coar_resnet(8), lambda: he_resnet(8)])
def test_cifar_margins_are_those_of_deep_copies(tmp_path, images, build):
    torch.save({"state_dict": randomised(build()).state_dict()}, tmp_path / "m.pt")
    check_semantics(CifarTask(str(tmp_path / "m.pt"), images(32), batch_size=4, autocast="none"))


def test_imagenet_resnet_margins_are_those_of_deep_copies(images):
    model = randomised(ResNet50Like(4, (1, 2, 1, 1), classes=10))
    task = small_imagenet(ImagenetResnetTask, model)(images(64), batch_size=4)
    check_semantics(task)


def test_imagenet_vit_margins_are_those_of_deep_copies(images):
    model = randomised(ViTLike(2, 2, 16, 32, classes=10))
    check_semantics(
        small_imagenet(ImagenetVitTask, model)(images(32), batch_size=4, autocast="none")
    )


def test_gpt2_margins_are_those_of_deep_copies(gpt2):
    check_semantics(Gpt2Task(*gpt2, num_stories=4, batch_size=4, autocast="none"))


def test_gpt2_rows_are_means_over_the_tokens_of_each_story(gpt2):
    task = Gpt2Task(*gpt2, num_stories=4, batch_size=3, autocast="none")
    task.prepare(CPU)
    (found,) = task.rows(np.arange(1), np.ones((1, task.num_features), bool)).values()
    model, tokenizer = task.model(), task._pretrained("GPT2Tokenizer")
    for story, value in zip(STORIES, found[0], strict=True):
        tokens = torch.tensor(tokenizer(story)["input_ids"])[None, :32]
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1]
        assert value.item() == pytest.approx(margin(logits, tokens[0, 1:]).mean().item(), abs=1e-3)


def test_the_readme_command_of_upstream_runs(tmp_path, images):
    torch.save(randomised(coar_resnet(256 // 32)).state_dict(), tmp_path / "m.pt")
    spec = {
        "num_models": 100,
        "schema": {
            "masks": {"dtype": "bool_", "shape": [72]},
            "test_margins": {"dtype": "float16", "shape": [3]},
        },
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    initialize(tmp_path / "store", load_spec(tmp_path / "spec.json"))
    command = (
        f"--expt.base_dir {tmp_path / 'store'} --expt.subsample_prob 0.95 --expt.batch_size 500 "
        f"--expt.start_index 0 --expt.end_index 5 --expt.model_path {tmp_path / 'm.pt'} "
        f"--expt.beton_path {images(32)} --expt.mask_size 72 --expt.subsample_skip 2 "
        "--expt.num_workers 3"
    )
    cifar_make_dataset.main(command.split())
    store = Store.open(tmp_path / "store")
    assert store.completed_rows().tolist() == [0, 1, 2, 3, 4]
    assert 0.8 < store.array("masks")[:5].mean() < 1


def test_a_whole_pickled_module_opens_without_its_code(tmp_path, monkeypatch):
    (tmp_path / "upstream_models.py").write_text(
        "from estimate.cifar_resnet.model import CifarResNet\n"
        "class MiniResNet(CifarResNet):\n"
        "    def __setstate__(self, state):\n"
        "        raise RuntimeError('code of the checkpoint was run')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import upstream_models

    model = upstream_models.MiniResNet((8,), (4,), pooled=4, single=True)
    for index, block in enumerate(model.layer):
        setattr(model, f"block{index}", block)
    torch.save(randomised(model), tmp_path / "whole.pt")
    monkeypatch.delitem(__import__("sys").modules, "upstream_models")
    (tmp_path / "upstream_models.py").unlink()
    loaded = CifarTask(str(tmp_path / "whole.pt"), "unused").model()
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), model(pictures))


def test_a_checkpoint_that_would_run_code_is_not_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(SetupError, match="could run code"):
        CifarTask(str(tmp_path / "evil.pt"), "unused").model()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (cifar_make_dataset.main, "--expt.model_path none.pt", "no model at none.pt; download"),
        (resnet_make_dataset.main, "", "torchvision|no images at"),
        (vit_make_dataset.main, "", "torchvision|no images at"),
        (gpt2_make_dataset.main, "--expt.model_path estimate", "--expt.model_path"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(tmp_path, monkeypatch, main, arguments, message):
    monkeypatch.chdir(SPECS.parent)
    if "torchvision" in message:
        monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    spec = {
        "num_models": 2,
        "schema": {
            "masks": {"dtype": "bool_", "shape": [5]},
            "margins": {"dtype": "float16", "shape": [3]},
        },
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    initialize(tmp_path / "store", load_spec(tmp_path / "spec.json"))
    start = f"--expt.base_dir {tmp_path / 'store'} --expt.subsample_prob 0.9 "
    with pytest.raises(CoarlibError, match=message) as caught:
        main((start + arguments).split())
    assert "\n" not in str(caught.value)
    assert len(Store.open(tmp_path / "store").completed_rows()) == 0


def test_bad_weights_and_settings_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "m.pt")
    with pytest.raises(SetupError, match="does not hold a CIFAR ResNet"):
        CifarTask(str(tmp_path / "m.pt"), "unused").model()
    weights = he_resnet(8).state_dict()
    weights["linear.bias"] = torch.zeros(3)
    with pytest.raises(SetupError, match="does not fit"):
        from_weights(weights, "x")
    with pytest.raises(SetupError, match="normalization must be"):
        CifarTask("m", "x", normalization="mnist")


@pytest.mark.parametrize(
    ("file", "components", "accuracy"),
    [
        ("akamaster_resnet20-12fca82f.th", 688, 0.915),
        ("akamaster_resnet32-d509ac18.th", 1136, 0.928),
    ],
)
def test_public_checkpoints_read_real_images(data_dir, file, components, accuracy):
    images = data_dir / "cifar10_test1000_lossless.npz"
    task = CifarTask(str(data_dir / file), str(images), subsample_skip=5, autocast="none")
    task.prepare(CPU)
    assert task.num_features == components
    rows = task.rows(np.arange(1), np.ones((1, components), bool))["test_margins"]
    assert rows.shape == (1, 200)
    assert (rows > 0).float().mean().item() == pytest.approx(accuracy, abs=0.03)
