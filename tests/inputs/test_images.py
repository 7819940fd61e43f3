import numpy as np
import pytest
import torch

from coarlib.errors import SetupError
from coarlib.inputs.images import CIFAR, normalised, read_images

X = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
Y = np.arange(10) % 3


def test_npz_and_folder_hold_the_same(tmp_path):
    np.savez(tmp_path / "images.npz", x=X, y=Y)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    for path in (tmp_path / "images.npz", tmp_path):
        images, labels = read_images(path, "", skip=3)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert (images.numpy() == X[::3]).all() and (labels.numpy() == Y[::3]).all()


def test_reading_changes_nothing_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    images, _ = read_images(tmp_path, "")
    images.zero_()
    assert (np.load(tmp_path / "x.npy") == X).all()


def test_normalisation_is_by_channel():
    images = normalised(torch.from_numpy(X), *CIFAR)
    expected = ((X - np.array(CIFAR[0])) / np.array(CIFAR[1])).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_missing_files_say_where_to_get_them(tmp_path):
    with pytest.raises(SetupError, match=r"no images at .*none\.npz; get them there"):
        read_images(tmp_path / "none.npz", "get them there")
    with pytest.raises(SetupError, match="there is no file"):
        read_images(tmp_path, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": X}, "must hold the arrays x"),
        ({"x": X.astype(float), "y": Y}, "must hold x uint8"),
        ({"x": X[..., 0], "y": Y}, "must hold x uint8"),
        ({"x": X, "y": Y.astype(float)}, "must hold x uint8"),
        ({"x": X, "y": Y[1:]}, "10 images but 9 labels"),
        ({"x": np.array([{}]), "y": Y}, "plain arrays"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    np.savez(tmp_path / "images.npz", **content)
    with pytest.raises(SetupError, match=message):
        read_images(tmp_path / "images.npz", "")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "images.jpg").touch()
    (tmp_path / "images.npz").touch()
    with pytest.raises(SetupError, match="is neither"):
        read_images(tmp_path / "images.jpg", "")
    with pytest.raises(SetupError, match="is not a"):
        read_images(tmp_path / "images.npz", "")
    with pytest.raises(SetupError, match="at least 1"):
        read_images(tmp_path / "images.npz", "", skip=0)


def test_a_beton_of_images_asks_for_ffcv(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ffcv.fields", None)
    (tmp_path / "images.beton").touch()
    with pytest.raises(SetupError, match="needs ffcv"):
        read_images(tmp_path / "images.beton", "")
