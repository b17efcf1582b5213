"""Files appear whole or not at all, and runs land where they should."""

import os

import pytest

from vox import files


def test_a_file_is_replaced_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "new" / "table.json"
    files.write_json(path, {"音": 1})
    assert files.read_json(path) == {"音": 1}
    with pytest.raises(OSError, match="disk full"), files.replacing(path) as aside:
        aside.write_text("half")
        raise OSError("disk full")
    assert files.read_json(path) == {"音": 1} and list(path.parent.iterdir()) == [path]


def test_json_has_no_word_for_nan(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", [float("nan")])
    assert not list(tmp_path.iterdir())


def test_broken_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="x.json"):
        files.read_json(tmp_path / "x.json")


def test_runs_and_caches_have_a_home(tmp_path, monkeypatch):
    monkeypatch.delenv("VOX_HOME", raising=False)
    monkeypatch.delenv("VOX_CACHE", raising=False)
    assert files.run_folder("runs/x") == files.HOME / "runs/x"
    assert files.cache_folder() == files.HOME / "data/cache"
    monkeypatch.setenv("VOX_HOME", str(tmp_path))
    monkeypatch.setenv("VOX_CACHE", str(tmp_path / "cache"))
    assert files.run_folder("runs/x") == tmp_path / "runs/x"
    assert files.run_folder(tmp_path / "absolute") == tmp_path / "absolute"
    assert files.cache_folder() == tmp_path / "cache"


def test_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert files.cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert files.cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert files.cores() == 1
