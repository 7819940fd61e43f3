"""Arguments: one grammar, every other name accepted, every wart of fastargs put right."""

import pytest
import yaml
from fastargs.validation import Anything

from coarlib.commands.arguments import Boolean, Command, Param, Settings, Whole, run
from coarlib.commands.checkers import Choice, Range, slice_of
from coarlib.errors import ArgumentError, CoarlibError, nearest

COMMAND = Command(
    "example",
    "What this does.\n\n    coar example STORE --rows 0:5",
    {
        "store": Param(
            str, "where to read", required=True, positional=True, also=("data.path", "expt.dir")
        ),
        "row": Param(int, "which row", positional=True),
        "out": Param(str, "where to write", required=True, also=("cfg.out_dir",)),
        "k": Param(int, "path length", default=1, also=("cfg.k",)),
        "lr": Param(float, "learning rate", default=0.1, also=("cfg.lr",)),
        "loud": Param(Boolean(), "talk", default=False, also=("cfg.loud",)),
        "verify": Param(Boolean(), "look twice", default=True, also=("data.verify",)),
        "mode": Param(Choice(["a", "b"]), "which", default="a", also=("cfg.mode",)),
        "workers": Param(Whole(1), "how many", also=("cfg.workers",)),
        "rows": Param(Range(), "which rows"),
        "set": Param(Settings(), "settings", default={}, also=("cfg.task_args",), many=True),
        "dry_run": Param(Boolean(), "only say", default=False),
    },
    {"cfg.true_random": "never read"},
)
NEEDED = ["there", "--out", "o"]


@pytest.fixture
def config(tmp_path):
    def write(text, name="c.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_defaults_types_and_what_was_given():
    args = COMMAND.parse(["there", "--out", "o", "--k=3"])
    assert (args.store, args.out, args.k, args.lr, args.loud) == ("there", "o", 3, 0.1, False)
    assert args.row is None and args.set == {} and args.verify is True
    assert args.given == {"store", "out", "k"}


@pytest.mark.parametrize(
    "words",
    [
        "there --out o --k 3",
        "--out=o there --k 3",
        "--data.path there --cfg.out_dir o --cfg.k 3",
        "--expt.dir=there --cfg.out_dir=o --k=3",
        "--store there --out o --k 3",
    ],
)
def test_every_name_means_the_same(words):
    args = COMMAND.parse(words.split())
    assert (args.store, args.out, args.k) == ("there", "o", 3)


def test_positional_arguments_by_place_or_by_name():
    assert COMMAND.parse(["--data.path", "s", "7", "--out", "o"]).row == 7
    args = COMMAND.parse(["s", "7", "--out", "-"])
    assert (args.store, args.row, args.out) == ("s", 7, "-")
    assert COMMAND.parse(["--out", "o", "--", "--odd"]).store == "--odd"


@pytest.mark.parametrize("flag", ["--config", "--config-file", "--config_file", "-C"])
def test_files_come_before_the_command_line(config, flag):
    file = config("cfg: {out_dir: from_file, k: 5, lr: 1e-3, loud: true}\ndata: {path: ~}\n")
    args = COMMAND.parse([flag, file, "there", "--cfg.k", "7"])
    assert (args.out, args.k, args.lr, args.loud) == ("from_file", 7, 1e-3, True)


def test_files_take_short_names_and_sections_and_later_ones_win(config):
    first = config("store: s\nout: first\nset: {a: 1, b: 2}\n")
    second = config("cfg: {out_dir: second, task_args: {b: 3}}\noptions: {rows: '0:5'}", "d.yaml")
    args = COMMAND.parse(["--config", first, "--config", second, "--set", "c=x"])
    assert (args.store, args.out, args.rows) == ("s", "second", "0:5")
    assert args.set == {"a": 1, "b": 3, "c": "x"}


def test_environment_stands_between(config, monkeypatch):
    monkeypatch.setenv("cfg.k", "9")
    monkeypatch.setenv("k", "8")  # a variable without a section means something else
    file = config("cfg: {out_dir: o, k: 5}\nstore: s")
    assert COMMAND.parse(["-C", file]).k == 9
    assert COMMAND.parse(["-C", file, "--cfg.k", "2"]).k == 2


@pytest.mark.parametrize(
    ("words", "value"),
    [("", False), ("--loud", True), ("--loud 1", True), ("--loud=False", False), ("--loud no", 0)],
)
def test_booleans_are_words(words, value):
    assert COMMAND.parse([*NEEDED, *words.split()]).loud is bool(value)


def test_a_flag_does_not_eat_what_follows():
    args = COMMAND.parse(["--loud", "there", "--out", "o", "--verify", "0", "--dry-run"])
    assert (args.store, args.loud, args.verify, args.dry_run) == ("there", True, False, True)


def test_negative_numbers_are_values():
    assert COMMAND.parse([*NEEDED, "--k", "-1", "--lr", "-0.5"]).k == -1


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--set a=1 --set b=x=y --set c=[1,2]", {"a": 1, "b": "x=y", "c": [1, 2]}),
        ('--set {"a":1,"b":"2"}', {"a": 1, "b": "2"}),
        ("--cfg.task_args {} --set a=true", {"a": True}),
        ("--set path=m.pt --set none=null", {"path": "m.pt", "none": None}),
    ],
)
def test_settings(words, found):
    assert COMMAND.parse([*NEEDED, *words.split()]).set == found


BAD = [
    ("", "STORE is required: where to read"),
    ("there", "--out is required: where to write"),
    ("there --out o --k x", "--k must be a whole number, not 'x'"),
    ("there --out o --cfg.k 2.5", "--cfg.k must be a whole number, not '2.5'"),
    ("there --out o --workers 0", "a whole number of at least 1, not '0'"),
    ("there --out o --mode c", "--mode must be one of a, b, not 'c'"),
    ("there --out o --loud=maybe", "--loud must be 0 or 1, not 'maybe'"),
    ("there x --out o", "ROW must be a whole number, not 'x'"),
    ("there --cfg.outdir o", "did you mean '--cfg.out_dir'"),
    ("there --outt o", "unknown argument --outt; did you mean '--out'"),
    ("there 1 stray --out o", "unknown argument stray"),
    ("there 1 2 --store s --out o", "STORE is given as --store"),
    ("there --out", "--out needs a value"),
    ("there --out --k 3", "--out needs a value"),
    ("there --out o --out p", "--out is given twice; give it once"),
    ("there --out o --cfg.out_dir o", "--cfg.out_dir is given twice (as --out too)"),
    ("there --out o --loud --loud", "--loud is given twice"),
    ("there --out o --set a", "--set must be key=value"),
    ("there --out o --set a=1 --set a=2", "each key once"),
    ("there --out o --set {", "or a JSON object"),
    ("there --out o --rows 5:2", "--rows must be A:B"),
    ("there --out o -x", "unknown argument -x"),
    ("there --config /nowhere.yaml", "there is no file /nowhere.yaml"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[words or "none" for words, _ in BAD])
def test_bad_arguments(words, message):
    with pytest.raises(ArgumentError) as caught:
        COMMAND.parse(words.split())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cfg: {out_dri: x}", "unknown key cfg.out_dri; did you mean 'cfg.out_dir'"),
        ("cfg: {out_dir: o, k: 2.7}", "c.yaml: cfg.k must be a whole number, not 2.7"),
        ("cfg: {k: 2}\nk: 3", "c.yaml: cfg.k and k are the same argument"),
        ("cfg: [", "is not plain YAML"),
        ("- 1", "must map sections to keys"),
        ("", "--out is required"),
        ("true_random: 1", "unknown key true_random"),
        ("out: o\nrows: {a: 1}", "c.yaml: rows must be A:B"),
    ],
)
def test_bad_files(config, text, message):
    with pytest.raises(ArgumentError) as caught:
        COMMAND.parse(["there", "--config", config(text)])
    assert message in str(caught.value)


def test_ignored_keys_are_named(config, capsys):
    file = config("cfg: {out_dir: o, true_random: true}")
    COMMAND.parse(["there", "-C", file])
    assert "cfg.true_random is ignored: never read" in capsys.readouterr().err


def test_two_parses_share_nothing():
    COMMAND.parse([*NEEDED, "--set", "a=1"])
    assert COMMAND.parse(NEEDED).set == {}


def test_a_saved_file_replays(tmp_path):
    file = tmp_path / "arguments.yaml"
    args = COMMAND.parse([*NEEDED, "--k", "4", "--set", "a=[1]", "--rows", "5", "--verify=0"])
    args.save(file)
    settled = yaml.safe_load(file.read_text())
    assert "coar example" in file.read_text() and settled.keys().isdisjoint({"dry_run", "lr"})
    again = COMMAND.parse(["--config", str(file)])
    for key in ("store", "out", "k", "set", "rows", "verify"):
        assert getattr(again, key) == getattr(args, key)
    assert COMMAND.parse(["--config", str(file), "--out", "p"]).out == "p"


def test_help_teaches_short_names_first(capsys):
    with pytest.raises(SystemExit) as stopped:
        COMMAND.parse(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for words in (
        "usage: coar example STORE [ROW] --out OUT",
        "What this does.",
        "coar example STORE --rows 0:5",
        "where to write (required) (also --cfg.out_dir)",
        "learning rate [0.1]",
        "--config FILE",
    ):
        assert words in text
    assert text.index("--out OUT") < text.index("--cfg.out_dir")


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


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("rate must be above 0, not -1", "--rate must be above 0, not -1"),
        ("the file needs rows", "--cfg.file needs rows"),
        ("rate of 3 is large", "rate of 3 is large"),  # a sentence about something else
        ("limit must be given", "limit must be given"),  # which were not
        ("mend it, or allow it (any_task)", "mend it, or allow it (--any_task)"),
        ("2 refused (any_task records them)", "2 refused (--any_task records them)"),
        ("there is a file (store) and (words)", "there is a file (store) and (words)"),
    ],
)
def test_what_the_library_says_names_arguments_as_they_were_given(capsys, said, shown):
    own = {
        "store": Param(str, "s", positional=True),
        "rate": Param(float, "r"),
        "file": Param(str, "f", also=("cfg.file",)),
        "limit": Param(str, "o"),
        "any_task": Param(Boolean(), "t", default=False),
    }

    def main(argv):
        Command("example", "", own).parse(argv)
        raise CoarlibError(said)

    with pytest.raises(SystemExit):
        run(main, ["x", "--rate", "-1", "--cfg.file", "y"])
    assert capsys.readouterr().err == f"error: {shown}\n"


def test_nearest():
    assert nearest("masx", ["masks", "margins"]) == "; did you mean 'masks'?"
    assert nearest("zzz", ["masks"]) == ""


def test_the_last_positional_may_take_all_that_are_left():
    out = Param(str, "o", required=True, positional=True)
    stores = Param(Anything(), "s", positional=True, many=True)
    args = Command("join", "x", {"out": out, "stores": stores}).parse(["o", "a", "b"])
    assert (args.out, args.stores) == ("o", ["a", "b"])


@pytest.mark.parametrize(
    ("text", "found"), [("2:5", (2, 5)), (":", (0, None)), (":5", (0, 5)), ("5", (0, 5))]
)
def test_ranges(text, found):
    assert (slice_of(text).start, slice_of(text).stop) == found


@pytest.mark.parametrize("text", ["", "a:b", "3:3", "-1:4", "1:2:3", "0", "::"])
def test_no_ranges(text):
    with pytest.raises(ValueError):
        slice_of(text)
