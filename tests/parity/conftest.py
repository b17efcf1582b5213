"""Fixtures of the parity tests: pairs of the same weights in official classes and in vox, the latter through the released layout."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for `import reference`


@pytest.fixture(autouse=True)
def seeded():
    """The same random inputs in every test, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A small tokenizer as the official package opens it."""
    import reference
    from transformers import LlamaTokenizerFast

    return LlamaTokenizerFast.from_pretrained(reference.save_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def pair(tokenizer, tmp_path_factory):
    """pair(name, seed=0) → .official, .ours, .folder, .tree: one random model of reference.CONFIGS in both worlds, float32, eval."""
    import reference

    from vox.official import load

    made = {}

    def make(name: str, seed: int = 0):
        if (name, seed) not in made:
            tree = reference.CONFIGS[name]
            official = reference.model(tree, tokenizer, seed)
            folder = reference.save(official, tree, tokenizer, tmp_path_factory.mktemp(name))
            with torch.random.fork_rng(devices=[]):
                ours = load(folder, device="cpu")
            made[name, seed] = SimpleNamespace(official=official, ours=ours, folder=folder, tree=tree)
        return made[name, seed]

    return make


# The largest figure of every comparison is printed after the run, so that a bound is a measured fact and not a promise.


def _figures():
    return sys.modules["reference"].FIGURES if "reference" in sys.modules else {}


_gathered = {}  # from worker processes, if the tests run in several


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["parity"] = _figures()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    for what, value in getattr(node, "workeroutput", {}).get("parity", {}).items():
        _gathered[what] = max(value, _gathered.get(what, 0.0))


def pytest_terminal_summary(terminalreporter):
    figures = _figures() | _gathered
    if figures:
        terminalreporter.section("parity: max|a-b| / max|b|")
        for what, value in sorted(figures.items()):
            terminalreporter.write_line(f"{value:9.2e}  {what}")
