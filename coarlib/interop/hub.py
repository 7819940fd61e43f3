"""Banks, stores and attributions on the Hugging Face hub, as data sets with a card.

A pushed directory is its files, a list of them with their sha256 (``coarlib.json``) and a card that
says the regime. What is pulled appears whole, once every file is what the list says; a pull or push
that stopped goes on, as the hub's client keeps what has arrived.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from coarlib import __version__
from coarlib.errors import CoarlibError, StoreError
from coarlib.files import DRAFT
from coarlib.interop.published import MARGINS, MASKS, load_bank
from coarlib.loading import load_json
from coarlib.regression import Attributions
from coarlib.regression.result_files import DATAMODELS
from coarlib.scoring.regime import regime_of
from coarlib.store import Store
from coarlib.store.layout import CLAIMS_DIR, SPEC_FILE

__all__ = ["pull", "push"]

LIST, CARD = "coarlib.json", "README.md"
_OWN = (LIST, CARD)
_CHUNK = 2**20


def push(
    path: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str = "main",
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Publish a store, attributions, or a bank of ``mask.npy`` and ``val_margins.npy``.

    Parameters
    ----------
    path : str or Path
    repo : str
        ``owner/name`` of a data set, which is made if there is none.
    private : bool
        Of a new one.
    revision : str
        Branch.
    endpoint, token : str, optional
        The client's own by default (``HF_ENDPOINT``, ``hf auth login``).

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    StoreError
        If the directory holds none of these, or the hub refuses.
    """
    path = Path(path)
    kind, facts = _described(path)
    names = _files(path)
    listed = {name: _digest(path / name) for name in names}
    about = {"coarlib": __version__, "kind": kind, "facts": facts, "files": listed}
    with _asking_hub(repo) as hub:
        api = hub.HfApi(endpoint=endpoint, token=token)
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        add = hub.CommitOperationAdd
        documents = {LIST: json.dumps(about, indent=1), CARD: _card(repo, kind, facts)}
        found = api.create_commit(
            repo,
            [
                *(add(name, str(path / name)) for name in names),
                *(add(name, text.encode()) for name, text in documents.items()),
            ],
            commit_message=f"{kind.capitalize()}, by coarlib {__version__}",
            repo_type="dataset",
            revision=revision,
        )
    return str(found.commit_url)


def pull(
    repo: str,
    out: str | Path,
    *,
    revision: str = "main",
    endpoint: str | None = None,
    token: str | None = None,
) -> Path:
    """Fetch what :func:`push` published.

    Parameters
    ----------
    repo : str
    out : str or Path
        A new directory. What has arrived of a pull that stopped waits beside it.
    revision : str
        Branch, tag or commit.
    endpoint, token
        As in :func:`push`.

    Raises
    ------
    StoreError
        If ``out`` is there, the data set was not pushed by coarlib, a file is not what its list
        says, or the hub refuses.
    """
    out = Path(out)
    if out.exists():
        raise StoreError(f"{out} is there already; pull into a new directory")
    building = out.with_name(f".{out.name}.pulling")
    with _asking_hub(repo) as hub:
        api = hub.HfApi(endpoint=endpoint, token=token)
        commit = str(api.dataset_info(repo, revision=revision).sha)  # one state of all files

        def fetch(name: str) -> Path:
            building.mkdir(parents=True, exist_ok=True)
            options = {"repo_type": "dataset", "revision": commit, "local_dir": building}
            return Path(api.hf_hub_download(repo, name, **options))

        listed = _listed(fetch(LIST), repo)
        for name, digest in listed.items():
            file = building / name
            if not (file.is_file() and _digest(file) == digest):
                file = fetch(name)
            if _digest(file) != digest:
                file.unlink()
                raise StoreError(
                    f"{name} of {repo} is not the file that was pushed (its sha256 differs from "
                    f"the one in {LIST}); pull again"
                )
    for extra in set(_files(building)) - {*listed, LIST}:
        (building / extra).unlink()  # of another commit
    (building / LIST).unlink()
    shutil.rmtree(building / ".cache", ignore_errors=True)
    os.rename(building, out)
    return out


def _described(path: Path) -> tuple[str, dict[str, Any]]:
    """Return what a directory holds, and what to say of it."""
    if (path / SPEC_FILE).is_file():
        store = Store.open(path)
        rows = store.completed_rows()
        facts: dict[str, Any] = {"rows": len(rows), "holds": store.describe()}
        masks, output = store.mask_key, store.spec.output_key
        if masks and output and store.array(output).ndim in (2, 3):
            facts["regime"] = _regime(store.array(masks), store.array(output), rows, output)
        return "store", facts
    if (path / DATAMODELS).is_file():
        found = Attributions.load(path)
        shape = list(found.weight.shape)
        facts = {"examples or components": shape[0], "outputs": shape[1]}
        method = (found.summary or {}).get("method")
        return "attributions", facts | ({"method": method} if method else {})
    if (path / MASKS).is_file() and (path / MARGINS).is_file():
        bank = load_bank(path)
        rows = np.arange(len(bank.masks))
        return "bank", {"rows": len(rows), "regime": _regime(bank.masks, bank.outputs, rows)}
    raise StoreError(
        f"{path} holds no store ({SPEC_FILE}), no attributions ({DATAMODELS}) and no bank ({MASKS} "
        f"and {MARGINS})"
    )


def _regime(masks: Any, outputs: Any, rows: Any, output: str | None = None) -> str:
    return str(regime_of(masks, outputs, rows, kind="spearman", output=output))


def _files(path: Path) -> list[str]:
    """Name the files to push: no claims, drafts, hidden files or what a hub adds."""
    found = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        parts = name.split("/")
        hidden = any(part.startswith(".") or DRAFT.fullmatch(part) for part in parts)
        if hidden or parts[0] == CLAIMS_DIR or name in _OWN:
            continue
        if file.is_symlink():
            raise StoreError(f"{file} is a link; what is pushed must be files")
        if file.is_file():
            found.append(name)
    return found


def _digest(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _listed(file: Path, repo: str) -> dict[str, str]:
    """Read the list of files; none may lie outside the directory it is fetched into."""
    content = load_json(file, StoreError)
    listed = content.get("files") if isinstance(content, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise StoreError(f"{repo} was not pushed by coarlib: its {LIST} lists no files")
    for name, digest in listed.items():
        path = PurePosixPath(name)
        parts = path.parts
        bad = path.is_absolute() or "\\" in name or ":" in name or name in _OWN
        if bad or not parts or any(p.startswith(".") for p in parts) or str(path) != name:
            raise StoreError(f"{LIST} of {repo} names {name!r}, which is no file inside it")
        if not isinstance(digest, str):
            raise StoreError(f"{LIST} of {repo} gives no sha256 of {name}")
    return listed


def _card(repo: str, kind: str, facts: dict[str, Any]) -> str:
    name = repo.rpartition("/")[2]
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    use = {
        "attributions": f"coar report {name}",
        "bank": f"# pull names the command that makes a store of {name}",
        "store": f"coar score_lds {name} SCORES",
    }[kind]
    return (
        "---\ntags:\n- coarlib\n- data-attribution\n---\n"
        f"# {name}\n\n{kind.capitalize()}, pushed by coarlib {__version__}.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        "Scores of different regimes (fraction kept, subsets, runs, seeds, output) cannot be "
        "compared.\n\n"
        f"```bash\npip install 'coarlib[hf]'\ncoar pull {name} {repo}\n{use}\n```\n\n"
        f"`{LIST}` has the sha256 of every file; `coar pull` checks them.\n"
    )


@contextmanager
def _asking_hub(repo: str) -> Iterator[Any]:
    """Give the hub's client; its errors become one sentence."""
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise StoreError(
            "the hub needs huggingface_hub; install it with pip install 'coarlib[hf]'"
        ) from error
    # Its bases are those of the HTTP client in use, of which connections that fail are, too.
    bases = (one for one in HfHubHTTPError.__mro__ if one not in (Exception, BaseException, object))
    failures: tuple[type[Exception], ...] = (*bases, OSError, ValueError, RuntimeError)
    try:
        yield hub
    except CoarlibError:
        raise
    except failures as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise StoreError(f"the hub's {repo} cannot be reached or refuses: {first}") from error
