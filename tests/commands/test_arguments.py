"""Arguments: every wart of fastargs that the facts name, put right."""

import pytest
from fastargs.validation import Anything, OneOf

from coarlib.commands.arguments import PLAIN, Boolean, Param, Whole, nearest, parse, run
from coarlib.errors import ArgumentError, CoarlibError


@pytest.fixture
def sections():
    return {
        "cfg": {
            "out_dir": Param(str, "where to write", required=True),
            "k": Param(int, "path length", default=1),
            "lr": Param(float, "learning rate", default=0.1),
            "loud": Param(Boolean(), "talk", default=False),
            "mode": Param(OneOf(["a", "b"]), "which", default="a"),
            "workers": Param(Whole(1), "how many"),
        },
        "data": {"path": Param(str, "where to read")},
    }


@pytest.fixture
def config(tmp_path):
    def write(text, name="c.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_defaults_types_and_what_was_given(sections):
    args = parse("x", sections, ["--cfg.out_dir", "o", "--cfg.k=3"])
    assert (args.cfg.out_dir, args.cfg.k, args.cfg.lr, args.cfg.loud) == ("o", 3, 0.1, False)
    assert args.data.path is None
    assert args.given == {"cfg.out_dir", "cfg.k"}


@pytest.mark.parametrize("flag", ["--config", "--config-file", "-C"])
def test_files_come_before_the_command_line(sections, config, flag):
    file = config("cfg: {out_dir: from_file, k: 5, lr: 1e-3, loud: true}\ndata: {path: ~}\n")
    args = parse("x", sections, [flag, file, "--cfg.k", "7"])
    assert (args.cfg.out_dir, args.cfg.k, args.cfg.lr, args.cfg.loud) == (
        "from_file",
        7,
        1e-3,
        True,
    )


def test_environment_stands_between(sections, config, monkeypatch):
    monkeypatch.setenv("cfg.k", "9")
    file = config("cfg: {out_dir: o, k: 5}")
    assert parse("x", sections, ["-C", file]).cfg.k == 9
    assert parse("x", sections, ["-C", file, "--cfg.k", "2"]).cfg.k == 2


@pytest.mark.parametrize(
    ("words", "value"), [([], False), (["1"], True), (["False"], False), (["no"], False), (None, 0)]
)
def test_booleans_are_words(sections, words, value):
    flag = [] if words is None else ["--cfg.loud", *words]
    expected = True if words == [] else bool(value)
    assert parse("x", sections, ["--cfg.out_dir", "o", *flag]).cfg.loud is expected


BAD = [
    ([], "--cfg.out_dir is required: where to write"),
    (["--cfg.out_dir", "o", "--cfg.k", "x"], "--cfg.k must be a whole number, not 'x'"),
    (["--cfg.out_dir", "o", "--cfg.k", "2.5"], "--cfg.k must be a whole number, not '2.5'"),
    (["--cfg.out_dir", "o", "--cfg.workers", "0"], "a whole number of at least 1, not '0'"),
    (["--cfg.out_dir", "o", "--cfg.mode", "c"], "--cfg.mode must be"),
    (["--cfg.out_dir", "o", "--cfg.loud", "maybe"], "--cfg.loud must be 0 or 1, not 'maybe'"),
    (["--cfg.outdir", "o"], "did you mean '--cfg.out_dir'"),
    (["--cfg.out", "o"], "unknown argument --cfg.out"),
    (["stray"], "unknown argument stray"),
    (["--cfg.out_dir"], "expected one argument"),
    (["--config", "/nowhere.yaml"], "cannot read configuration file /nowhere.yaml: No such file"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_arguments(sections, argv, message):
    with pytest.raises(ArgumentError) as caught:
        parse("x", sections, argv)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cfg: {out_dri: x}", "unknown key cfg.out_dri; did you mean 'cfg.out_dir'"),
        ("cfg: {out_dir: o, k: 2.7}", "c.yaml: cfg.k must be a whole number, not 2.7"),
        ("cfg: [", "cannot be parsed"),
        ("- 1", "must map sections to keys"),
        ("", "--cfg.out_dir is required"),
        ("true_random: 1", "unknown key true_random"),
    ],
)
def test_bad_files(sections, config, text, message):
    with pytest.raises(ArgumentError) as caught:
        parse("x", sections, ["--config", config(text)])
    assert message in str(caught.value)


def test_ignored_keys_are_named(sections, config, capsys):
    file = config("cfg: {out_dir: o, true_random: true}")
    parse("x", sections, ["-C", file], ignored={"cfg.true_random": "never read"})
    assert "cfg.true_random is ignored: never read" in capsys.readouterr().err


def test_two_parses_share_nothing(sections):
    parse("x", sections, ["--cfg.out_dir", "first", "--data.path", "p"])
    assert parse("x", sections, ["--cfg.out_dir", "second"]).data.path is None


def test_help_teaches(sections, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("What this does.", sections, ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for words in ("What this does.", "--cfg.out_dir", "(required)", "(default: 0.1)", "--config"):
        assert words in text


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(CoarlibError("one sentence"), 2, "error: one sentence\n"), (KeyboardInterrupt(), 130, "")],
)
def test_exit_codes(capsys, error, code, words):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(main, [])
    assert stopped.value.code == code
    assert words in capsys.readouterr().err


def test_nearest():
    assert nearest("masx", ["masks", "margins"]) == "; did you mean 'masks'?"
    assert nearest("zzz", ["masks"]) == ""


@pytest.fixture
def store_command():
    options = {"rows": Param(str, "range"), "repair": Param(Boolean(), "mend", default=False)}
    positional = {"store": Param(str, "the store", required=True), "row": Param(int, "the row")}
    return lambda *argv: parse("x", {PLAIN: options}, argv, positional=positional)


def test_plain_options_and_positionals(store_command):
    args = store_command("--repair", "there", "--rows", "1:2", "7")
    assert (args.store, args.row, args.options.rows, args.options.repair) == (
        "there",
        7,
        "1:2",
        True,
    )
    assert store_command("there").options.repair is False


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "STORE is required: the store"),
        (["s", "x"], "ROW must be a whole number, not 'x'"),
        (["s", "--repare"], "unknown argument --repare; did you mean '--repair'"),
        (["s", "1", "2"], "unknown argument 2"),
    ],
)
def test_bad_plain_arguments(store_command, argv, message):
    with pytest.raises(ArgumentError) as caught:
        store_command(*argv)
    assert message in str(caught.value)


def test_the_last_positional_may_take_all_that_are_left():
    positional = {"out": Param(str, "o", required=True), "stores...": Param(Anything(), "s")}
    args = parse("x", {}, ["o", "a", "b"], positional=positional)
    assert (args.out, args.stores) == ("o", ["a", "b"])
