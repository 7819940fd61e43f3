"""Whole files: a reader sees the old content or the new, never a part."""

import os
import threading

import pytest

from coarlib.files import whole_file


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
