"""`python -m vox.check`: a line per thing, a remedy where one fails, an exit status, and no crash without packages."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest

from vox import check

ROOT = Path(__file__).parent.parent


def lines(capsys):
    return capsys.readouterr().out.strip().splitlines()


def test_everything_required_works_here(capsys):
    assert check.main() == 0
    *rows, last = lines(capsys)
    assert len(rows) == len(check.REQUIRED + check.USEFUL) and last == "Ready."
    assert all(row.split()[0] == "OK" for row in rows[: len(check.REQUIRED)])
    assert f"torch {importlib.metadata.version('torch')}" in rows[1]


def test_packages_are_the_projects_own():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(check.PACKAGES) == sorted(project["dependencies"])
    assert set(check.LAB) <= set(project["optional-dependencies"]["lab"])


def test_a_missing_package_is_named_with_a_remedy(monkeypatch, capsys):
    monkeypatch.setattr(check, "PACKAGES", ["torch", "no-such-package"])
    name, ok, detail = check.packages()
    assert (name, ok) == ("packages", False) and detail.startswith("no-such-package: not installed") and "make lab" in detail
    assert check.main() == 1
    assert "remedies" in lines(capsys)[-1]


def test_something_useful_that_fails_is_only_a_note(monkeypatch, capsys):
    monkeypatch.setattr(check, "LAB", ["no-such-package"])
    assert check.main() == 0
    assert any(line.startswith("note    lab") for line in lines(capsys))


def test_a_check_that_raises_is_a_failed_check():
    def broken():
        raise OSError("no sound")

    assert check.run(broken)[:2] == ("broken", False)
    assert "OSError: no sound" in check.run(broken).detail


def test_small_machines_get_remedies(monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9e9, 8.5e9, 5e8))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 1000 if name == "SC_PHYS_PAGES" else 4096)
    monkeypatch.setattr(check, "bf16_speed", lambda: 0.4)
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    for one, word in ((check.disk, "0.5 GB"), (check.cores, "1: "), (check.memory, "0.0 GB"), (check.bf16, "fp32"), (check.python, "3.11")):
        name, ok, detail = one()
        assert not ok and word in detail, detail


def test_the_disk_is_that_of_runs_and_cache(tmp_path, monkeypatch):
    """Two disks, one of them nearly full; neither folder is there yet."""
    Usage = namedtuple("Usage", "total used free")
    free = {tmp_path: 9e9, tmp_path / "small": 5e8}
    (tmp_path / "small").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9e9, 0, free[path]))
    for full, empty in (("VOX_HOME", "VOX_CACHE"), ("VOX_CACHE", "VOX_HOME")):
        monkeypatch.setenv(full, str(tmp_path / "small" / "new" / "folder"))
        monkeypatch.setenv(empty, str(tmp_path / "new"))
        name, ok, detail = check.disk()
        assert not ok and detail.startswith(f"0.5 GB free for {tmp_path}/small/new/folder"), detail
    free[tmp_path / "small"] = 5e9
    assert check.disk().ok


def test_espeak_speaks_and_a_mute_one_fails(monkeypatch):
    assert check.espeak().ok
    monkeypatch.setattr("espeakng_loader.get_library_path", lambda: "/nowhere/libespeak-ng.so")
    assert not check.run(check.espeak).ok


def test_bf16_speed_is_a_ratio_of_times():
    assert 0.01 < check.bf16_speed(64) < 100


@pytest.mark.parametrize("package", ["torch", "espeakng_loader"])
def test_the_page_prints_without_a_package(package):
    """In a fresh process where a package cannot be imported: every line is there, and the exit status says so."""
    code = f"import sys, runpy; sys.modules[{package!r}] = None; runpy.run_module('vox.check', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    rows = done.stdout.strip().splitlines()
    assert len(rows) == len(check.REQUIRED + check.USEFUL) + 1
    assert any(row.startswith("MISSING espeak") and package in row for row in rows)
