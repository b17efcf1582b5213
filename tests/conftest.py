"""What holds for every test: short training, marks by folder, and no silent skips in continuous integration."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("VOX_BUDGET", "4")  # notebooks train this many steps at most; kernels inherit it
os.environ["VOX_HOME"] = tempfile.mkdtemp(prefix="vox-tests-")  # a real run in runs/ is not touched
atexit.register(shutil.rmtree, os.environ["VOX_HOME"], ignore_errors=True)

TESTS = Path(__file__).parent
MUST_RUN = {"parity", "notebook", "browser"}


def mark_of(path: Path) -> str | None:
    """The mark that a file's place gives to its tests, or None."""
    if path.suffix == ".ipynb":
        return "notebook"
    return next((mark for mark in ("parity", "browser") if path.is_relative_to(TESTS / mark)), None)


class Strict:
    """Marks by place; and where CI is set, a skipped parity, notebook or browser test is a failure.

    Registered as a plugin, since the hooks of this file alone do not see the notebooks that nbval collects.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        for item in items:
            if mark := mark_of(item.path):
                item.add_marker(mark)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item):
        report = yield
        return fail_skipped(report) if MUST_RUN & {mark.name for mark in item.iter_markers()} else report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector):
        report = yield
        return fail_skipped(report) if mark_of(collector.path) else report


def fail_skipped(report):
    """The report, a failure instead of a skip where CI is set (an expected failure stays what it is)."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"skipped, which counts as a failure where CI is set: {reason}"
    return report


def pytest_configure(config):
    config.pluginmanager.register(Strict(), "vox-strict")
