"""Whole files: a reader sees the old content or the new, never a part."""

import errno
import os
import subprocess
import sys
import threading

import pytest

from coarlib.files import draft_of, sweep, whole_directory, whole_file


def test_the_file_appears_whole_with_the_users_umask(tmp_path):
    old = os.umask(0o027)
    try:
        with whole_file(tmp_path / "a", "w") as file:
            file.write("grüße")
            assert not (tmp_path / "a").exists()
    finally:
        os.umask(old)
    assert (tmp_path / "a").read_text(encoding="utf-8") == "grüße"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_an_exception_leaves_the_old_file_and_no_draft(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a") as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert (tmp_path / "a").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_written_is_named(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what write() raises
    with pytest.raises(OSError) as refused, whole_file(tmp_path / "a"):
        raise full
    assert refused.value.filename == str(tmp_path / "a")
    with pytest.raises(OSError) as refused, whole_file(tmp_path / "nowhere" / "a"):
        pass
    assert refused.value.filename == str(tmp_path / "nowhere" / "a")


def test_of_many_writers_the_first_wins_or_the_last_as_asked(tmp_path):
    for replace in (False, True):
        barrier = threading.Barrier(6)

        def write(number, replace=replace, barrier=barrier):
            with whole_file(tmp_path / str(replace), replace=replace) as file:
                barrier.wait()
                file.write(b"%d" % number * 1000)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        content = (tmp_path / str(replace)).read_bytes()
        assert len(content) == 1000
        assert len(set(content)) == 1
    with whole_file(tmp_path / "False", replace=False) as file:
        file.write(b"late")
    assert len((tmp_path / "False").read_bytes()) == 1000


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from coarlib.files import whole_directory\n"
        "with whole_directory(Path(sys.argv[1])) as draft:\n"
        "    (draft / 'part').write_bytes(b'x'); os.kill(os.getpid(), 9)"
    )
    path = tmp_path / "s[1]"
    subprocess.run([sys.executable, "-c", code, path], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    mine = draft_of(path)
    mine.touch()
    elsewhere = mine.with_name(".s[1].00000000-1-00000000")
    elsewhere.touch()
    other = tmp_path / ".s[1].notes"
    other.touch()
    with whole_directory(path) as draft:
        os.rename(draft, path)
    assert set(tmp_path.iterdir()) == {path, mine, elsewhere, other}
    os.utime(elsewhere, (0, 0))
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {path, mine, other}


def test_a_directory_has_the_group_and_the_bits_of_its_place(tmp_path):
    tmp_path.chmod(0o2770)
    old = os.umask(0o002)
    try:
        with whole_directory(tmp_path / "new") as draft:
            os.rename(draft, tmp_path / "new")
    finally:
        os.umask(old)
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o2775
