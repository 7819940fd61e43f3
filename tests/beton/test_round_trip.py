"""What is written is what is read, for every schema, order and way of reading."""

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coarlib import beton
from coarlib.beton.layout import MIN_PAGE_SIZE
from coarlib.errors import BetonError


def assert_same(got, want):
    assert list(got) == list(want)
    for name in want:
        assert got[name].dtype == want[name].dtype
        assert got[name].shape == want[name].shape
        assert got[name].tobytes() == np.ascontiguousarray(want[name]).tobytes(), name


@pytest.mark.parametrize("page_size", [None, MIN_PAGE_SIZE])
def test_every_schema_comes_back_bit_for_bit(schema, tmp_path, page_size):
    _, fields, source = schema
    path = beton.write(tmp_path / "x.beton", fields, source, page_size=page_size, quiet=True)
    with beton.open(path) as file:
        assert dict(file.fields) == fields
        rows = len(next(iter(source.values())))
        assert len(file) == rows
        assert_same(file.rows(slice(None)), source)
        some = np.random.default_rng(1).integers(0, rows, 50)
        assert_same(file.rows(some), {name: array[some] for name, array in source.items()})
        for where, views in file.views():
            assert_same(views, {name: array[where] for name, array in source.items()})
            assert not any(view.flags.writeable for view in views.values())


DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.byte_string_dtypes(min_len=1, max_len=9),
    hnp.datetime64_dtypes(),
)
NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=16)
FIELDS = st.one_of(
    st.just(beton.Int()),
    st.just(beton.Float()),
    st.builds(beton.NDArray, DTYPES, hnp.array_shapes(max_dims=5, max_side=6)),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=st.dictionaries(NAMES, FIELDS, min_size=1, max_size=6),
    rows=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_any_schema_comes_back(tmp_path, fields, rows, seed):
    rng = np.random.default_rng(seed)
    source = {}
    for name, field in fields.items():
        raw = rng.integers(0, 256, (rows, *field.shape, field.dtype.itemsize), np.uint8)
        source[name] = (raw & 1 if field.dtype == bool else raw).view(field.dtype)[..., 0]
    path = tmp_path / "any.beton"
    path.unlink(missing_ok=True)
    beton.write(path, fields, source, quiet=True)
    with beton.open(path) as file:
        assert dict(file.fields) == fields
        assert_same(file.rows(slice(None)), source)


def test_batches_cover_the_file_once_in_either_order(coar_file):
    path, source = coar_file
    with beton.open(path) as file:
        whole = list(file.batches(64))
        assert [len(batch["idx"]) for batch in whole] == [64, 64, 64, 64, 44]
        joined = {name: np.concatenate([batch[name] for batch in whole]) for name in source}
        assert_same(joined, source)
        assert len(list(file.batches(64, drop_last=True))) == 4

        def shuffled(seed):
            batches = file.batches(64, "random", seed=seed, names=["idx"])
            return np.concatenate([batch["idx"] for batch in batches])

        assert sorted(shuffled(1)) == sorted(source["idx"])
        assert (shuffled(1) == shuffled(1)).all()
        assert (shuffled(1) != shuffled(2)).any()
        subset = [batch["idx"] for batch in file.batches(3, indices=slice(290, 300))]
        assert np.concatenate(subset).tolist() == source["idx"][290:].tolist()


def test_an_open_file_can_be_sent_to_another_process(coar_file):
    path, source = coar_file
    with beton.open(path) as file, pickle.loads(pickle.dumps(file)) as other:
        assert (other.rows([7])["targets"] == source["targets"][[7]]).all()


def test_lists_are_written_as_arrays(tmp_path):
    fields = {"x": beton.NDArray(np.int64, (2,)), "loss": beton.Float()}
    path = beton.write(tmp_path / "x.beton", fields, {"x": [[1, 2], [3, 4]], "loss": [0.5, 2]})
    with beton.open(path) as file:
        assert file.rows([1, 0])["x"].tolist() == [[3, 4], [1, 2]]
        assert file.rows(np.array([False, True]))["loss"].tolist() == [2.0]


def test_rows_out_of_range_unknown_fields_and_closed_files_are_refused(coar_file):
    path, _ = coar_file
    file = beton.open(path)
    assert len(file.rows([])["targets"]) == 0
    for bad in ([300], [-1], [0.5], [[1]]):
        with pytest.raises(BetonError, match="row"):
            file.rows(bad)
    with pytest.raises(BetonError, match="did you mean 'targets'"):
        file.rows([0], ["target"])
    with pytest.raises(BetonError, match="batch_size"):
        file.batches(0)
    with pytest.raises(BetonError, match="order"):
        file.batches(1, "quasi")
    kept = next(file.views())[1]["mask"]
    before = kept.copy()
    file.close()
    assert (kept == before).all()
    with pytest.raises(BetonError, match="closed"):
        file.rows([0])
