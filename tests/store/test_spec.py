"""The JSON spec: everything valid round-trips, everything else is one named error."""

import json
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coarlib.errors import SpecError
from coarlib.store.spec import DTYPES, load_spec, parse_spec

KEY = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)
ARRAY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(DTYPES), "shape": st.lists(st.integers(1, 50), max_size=3)}
)
SCHEMA = st.dictionaries(KEY, ARRAY, min_size=1, max_size=5).filter(
    lambda schema: len({key.lower() for key in schema}) == len(schema)
)


@given(num_models=st.integers(1, 10**6), schema=SCHEMA, notes=st.text(max_size=30))
def test_valid_specs_round_trip(num_models, schema, notes):
    spec = parse_spec(json.dumps({"num_models": num_models, "schema": schema, "notes": notes}))
    assert spec.num_models == num_models
    assert list(spec.schema) == list(schema)
    for key, array in spec.schema.items():
        assert array.dtype == np.dtype(getattr(np, schema[key]["dtype"]))
        assert array.shape == tuple(schema[key]["shape"])
        assert array.row_bytes == np.zeros(array.shape, array.dtype).nbytes
    assert parse_spec(json.dumps(spec.as_json())) == spec
    assert spec.differences(parse_spec(json.dumps(spec.as_json()))) == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3),
        max_leaves=8,
    )
)
def test_arbitrary_json_never_gets_past_a_spec_error(content):
    for whole in (content, {"num_models": 3, "schema": content}, {"num_models": content}):
        try:
            parse_spec(json.dumps(whole))
        except SpecError as error:
            assert str(error)


@given(st.text(max_size=40))
def test_arbitrary_text_never_gets_past_a_spec_error(text):
    with pytest.raises(SpecError):
        parse_spec(text + "{")


def with_array(content, **changes):
    content["schema"]["margins"].update(changes)


def with_key(content, key):
    content["schema"][key] = {"dtype": "bool_", "shape": [2]}


BAD = [
    (lambda c: c.pop("num_models"), "num_models is missing"),
    (lambda c: c.pop("schema"), "schema is missing"),
    (lambda c: c.update(num_models=0), "num_models must be a positive whole number, not 0"),
    (lambda c: c.update(num_models=2.5), "num_models must be a positive whole number"),
    (lambda c: c.update(num_models=True), "num_models must be a positive whole number"),
    (lambda c: c.update(num_models="100"), "num_models must be a positive whole number"),
    (lambda c: c.update(schema={}), "at least one array"),
    (lambda c: c.update(desing={}), "did you mean 'design'"),
    (lambda c: with_array(c, dtype="float17"), "did you mean 'float16'"),
    (lambda c: with_array(c, dtype="object"), "not a dtype a store can hold"),
    (lambda c: with_array(c, dtype=16), "not a dtype a store can hold"),
    (lambda c: with_array(c, shape=[-3]), "positive whole numbers, not [-3]"),
    (lambda c: with_array(c, shape=3), "must be a list"),
    (lambda c: with_array(c, shape=[0]), "positive whole numbers"),
    (lambda c: with_array(c, shape=[10**15, 10**15]), "would take more than"),
    (lambda c: with_array(c, shapes=[3]), "did you mean 'shape'"),
    (lambda c: c["schema"]["margins"].pop("dtype"), "schema.margins.dtype is missing"),
    (lambda c: c["schema"].update(x=5), "must be an object with dtype and shape"),
    (lambda c: with_key(c, "_completed"), "'_completed' is reserved"),
    (lambda c: with_key(c, "../evil"), "'../evil' cannot name a file"),
    (lambda c: with_key(c, "a/b"), "'a/b' cannot name a file"),
    (lambda c: with_key(c, ""), "cannot name a file"),
    (lambda c: with_key(c, "x" * 300), "cannot name a file"),
    (lambda c: with_key(c, "Margins"), "name one file"),
    (lambda c: c.update(outputs={"margin": "x"}), "did you mean 'margins'"),
    (lambda c: c.update(notes=5), "notes must be text"),
    (lambda c: c["design"].update(kind="gauss"), "design.kind must be one of"),
    (lambda c: c["design"].update(keep_prob=1.5), "design.keep_prob must be a probability"),
    (lambda c: c["design"].pop("keep_prob"), "design.keep_prob is missing"),
    (lambda c: c["design"].update(seed=-1), "design.seed must be at least 0"),
    (lambda c: c["design"].update(array="margins"), "must have dtype bool_ and one dimension"),
    (lambda c: c["design"].update(array="nope"), "is not in the schema"),
    (lambda c: c["design"].update(size=3), "design.size is not a key of a bernoulli design"),
    (lambda c: c.update(design={"kind": "fixed_size", "size": 11}), "a mask has 10 features"),
    (lambda c: c.update(design={"kind": "fixed_size"}), "exactly one of size and keep_prob"),
    (lambda c: c.update(design={"kind": "leave_one_out"}), "at most 11 rows"),
    (lambda c: c.update(design={"kind": "explicit", "kept": [[1]]}), "lists 1 rows"),
    (
        lambda c: c.update(design={"kind": "explicit", "ablated": [[10]] * 24}),
        "row 0 of the explicit design",
    ),
    (
        lambda c: c.update(design={"kind": "explicit", "ablated": [], "kept": []}),
        "both kept and ablated",
    ),
    (lambda c: c.update(design={"kind": "explicit", "kept": [["a"]]}), "must be a whole number"),
    (lambda c: c.update(design=[]), "design must be an object"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_specs_say_what_is_wrong(spec_content, change, message):
    change(spec_content)
    with pytest.raises(SpecError) as caught:
        parse_spec(json.dumps(spec_content))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"num_models": 5,', "line 1, column"),
        ("[1, 2]", "must be a JSON object"),
        ('{"num_models": NaN}', "NaN is not a number"),
        ('{"num_models": 5, "num_models": 6}', "'num_models' stands twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_malformed_json(text, message):
    with pytest.raises(SpecError, match=message):
        parse_spec(text)


def test_missing_and_binary_files_are_named(tmp_path):
    with pytest.raises(SpecError, match=r"there is no file .*no\.json"):
        load_spec(tmp_path / "no.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not UTF-8"):
        load_spec(tmp_path / "binary.json")


def test_differences_name_what_changed(spec_content):
    one = parse_spec(json.dumps(spec_content))
    spec_content["num_models"] = 25
    spec_content["design"]["seed"] = 9
    spec_content["notes"] = "changes no row"
    two = parse_spec(json.dumps(spec_content))
    assert one.differences(two) == [
        "num_models: 24 here, 25 there",
        "design.seed: 1 here, 9 there",
    ]
