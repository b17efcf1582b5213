"""Notebook 10: its tables are what the raw rows say, its verdicts what the intervals say, and the sweeps behind it can be run."""

import ast
import copy
import json
import math
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from notebook_code import definitions

from vox import ablations, files, judge, sweep
from vox.config import preset

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks/10_ablations.ipynb"
SWEEPS = ROOT / "notebooks/sweeps"
RESULTS = json.loads((ROOT / "data/results/ablations.json").read_text(encoding="utf-8"))
VAES = json.loads((ROOT / "data/results/ablations_vae.json").read_text(encoding="utf-8"))
MEASURED_OF_VAES = {"mel dist.", "STOI", "errors, %", "KL, nats/s", "surprise", "channels"}


@pytest.fixture
def notebook():
    code = definitions(NOTEBOOK)
    code.results, code.runs = copy.deepcopy(RESULTS), copy.deepcopy(RESULTS["variants"])
    code.MEASURES = {
        "CER short": (lambda run: code.cer(run, "short"), 1),
        "CER long": (lambda run: code.cer(run, "long"), 1),
        "SIM cloned": (code.similarity, -1),
        "loss": (lambda run: np.mean([value for row in run["loss"].values() for value in row.values()]), 1),
    }
    code.everything = {}
    return code


# ---- the verdict -----------------------------------------------------------------------------------------------------


def test_verdicts(notebook):
    verdict = notebook.verdict
    assert verdict([5.0, 6.0, 5.5]) == "holds" and verdict([5.0, 6.0, 5.5], claim=-1) == "does not hold"
    assert verdict([-5.0, -6.0, -5.5]) == "does not hold" and verdict([-5.0, -6.0, -5.5], claim=-1) == "holds"
    assert verdict([0.5, 12.0, 4.0]) == "cannot tell at this scale"
    assert verdict([1.0, -1.0]) == verdict([0.0, 0.0, 0.0]) == "cannot tell at this scale"
    assert verdict([100.0]) == "cannot tell: one seed" and verdict([]) == "not run" and verdict([5.0, 6.0], claim=0) == "no claim"


def test_the_interval_is_students(notebook):
    """Of many draws of three from a normal distribution 95 % of the intervals hold its mean: a bootstrap's would be some 75 %."""
    draw = np.random.default_rng(0).normal(2.0, 3.0, (4000, 3))
    inside = [low <= 2.0 <= high for _, low, high in map(notebook.interval, draw)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
    assert notebook.interval([1.5]) == (1.5, -math.inf, math.inf)


# ---- the tables ------------------------------------------------------------------------------------------------------


def test_two_tables_from_raw_rows(notebook):
    """Error rates and similarities of every run, and the differences by seed, recomputed another way."""
    units = {name: sum(row[2] for row in rows) for name, rows in RESULTS["sentences"].items()}
    plain = {}
    for run in RESULTS["variants"]:
        wrong = {name: sum(errors for _, errors, *_ in rows) for name, rows in run["speech"].items()}
        sims = [row[4] for row in run["speech"]["cloned"]]
        plain[run["name"], run["seed"]] = wrong["short"] / units["short"], sum(sims) / len(sims)
        assert notebook.cer(run, "short") == pytest.approx(100 * wrong["short"] / units["short"])
        assert notebook.cer(run, "long") == pytest.approx(100 * wrong["long"] / units["long"])
        assert notebook.similarity(run) == pytest.approx(100 * sum(sims) / len(sims))
    for name in {name for name, _ in plain}:
        seeds = [seed for other, seed in sorted(plain) if other == name and ("default", seed) in plain]
        for k, measure in ((0, "CER short"), (1, "SIM cloned")):
            sign = (1, -1)[k]
            expected = {seed: sign * 100 * (plain[name, seed][k] - plain["default", seed][k]) for seed in seeds}
            assert notebook.differences(notebook.runs, name, measure) == pytest.approx(expected)


def test_errors_are_those_of_the_transcripts():
    """What was counted when the runs were made can be counted again from what the judge heard."""
    from vox import metrics

    for run in RESULTS["variants"]:
        for name, rows in run["speech"].items():
            for (text, *_), (heard, errors, *_) in zip(RESULTS["sentences"][name], rows, strict=True):
                assert metrics.errors(text, heard)[0] == errors


def test_missing_rows(notebook):
    """A seed that only one of both has is left out; a variant without runs is said to be not run, and drawn as an empty row."""
    code = notebook
    run = RESULTS["variants"][0]
    code.runs = [run | {"name": "default", "seed": seed} for seed in (0, 1)] + [run | {"name": "other", "seed": seed} for seed in (1, 2)]
    assert list(code.differences(code.runs, "other", "CER short")) == [1] and code.differences(code.runs, "none", "loss") == {}
    speech_only = [{key: value for key, value in row.items() if key != "loss"} for row in code.runs]
    assert code.differences(speech_only, "other", "loss") == {}
    lines = code.report(code.runs, {"other": ("it", 1), "absent": ("gone", 1)})
    said = {line[:2]: line[-1] for line in lines}
    assert said["it", "loss"] == "cannot tell: one seed" and said["gone", "loss"] == "not run"
    points = {line[:2]: list(code.differences(code.runs, "other", line[1]).values()) if line[0] == "it" else [] for line in lines}
    assert len(code.forest(lines, points).axes) == 4


def test_progress_names_what_lacks(notebook):
    tree = {
        "variants": [{"sweep": "a", "name": "x", "seed": 0}],
        "ways": [],
        "missing": [{"sweep": "a", "name": "x", "seed": 1}, {"sweep": "b", "model": "tiny", "seed": 0}],
    }
    assert notebook.progress(tree) == {"a": [1, 1, {"x": [1]}], "b": [0, 1, {"model tiny": [0]}]}


def test_every_variant_is_asked_about():
    """No run of the sweeps is left out of the questions, and no question is about a variant that no sweep has."""
    asked = set()
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code" and ("ask(" in cell.source or "VAES = " in cell.source):
            for node in ast.walk(ast.parse(cell.source)):
                asked |= {key.value for key in node.keys if isinstance(key, ast.Constant)} if isinstance(node, ast.Dict) else set()
    asked = {name for name in asked if not name.startswith(("guidance", "name", "seed"))} - MEASURED_OF_VAES
    planned = {ablations.name_of(run.parameters["changes"]) for file in ("ablations", "ablations_more", "vae") for run in plan(file).runs}
    assert planned - {"default"} == asked - {"before its decay"}, asked ^ planned


def test_the_explorer_draws_what_it_is_asked(notebook):
    run = notebook.runs[0]
    notebook.SAMPLES = ROOT / "data/results/ablations/samples"
    figure, note, (sound, rate) = notebook.explore(run["name"], run["seed"], "cloned")
    assert rate == 16000 and len(sound) > 3000 and run["speech"]["cloned"][0][0] in note and "SIM" in note and "CER" in note
    assert len(figure.axes) == 2
    figure, note, sound = notebook.explore(run["name"], 99, "short")
    assert "not run" in note and sound is None


def test_the_table_of_vaes_from_raw_rows(notebook):
    """What is subtracted of an AudioVAE, recomputed from its lines, and the picture of the trade with a row that is not run."""
    code = notebook
    code.MEASURES = {"mel dist.": (lambda run: code.over(run, 0), 1), "STOI": (lambda run: code.over(run, 1), -1)}
    for name in code.VAES:
        pairs = {}
        for run in VAES["variants"]:
            if run["name"] in (name, "default"):
                mels, stois, *_ = zip(*run["lines"], strict=True)
                pairs.setdefault(run["seed"], {})[run["name"]] = sum(mels) / len(mels), sum(stois) / len(stois)
        for k, (measure, sign) in enumerate((("mel dist.", 1), ("STOI", -1))):
            expected = {seed: sign * (pair[name][k] - pair["default"][k]) for seed, pair in pairs.items() if len(pair) == 2}
            assert code.differences(VAES["variants"], name, measure) == pytest.approx(expected)
    some = [run for run in VAES["variants"] if run["name"] != "vae.latent_dim 4"]
    (ax,) = code.trade(some, ["default", *code.VAES]).axes
    drawn = {text.get_text() for text in ax.get_legend().get_texts()}
    assert "KL weight 0.5" in drawn and "4 channels" not in drawn and len(drawn) == len({run["name"] for run in some})


def test_recordings_without_a_measure_are_left_out(notebook):
    assert notebook.over({"lines": [[1.0, None], [3.0, 0.5]]}, 1) == 0.5 and notebook.over({"lines": [[1.0, None], [3.0, 0.5]]}, 0) == 2


def test_every_sound_is_there():
    folder = ROOT / "data/results/ablations/samples"
    named = [sound for run in RESULTS["variants"] for sound in run["samples"].values()]
    assert sorted(named) == sorted(path.name for path in folder.iterdir())
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5_000_000


def test_the_claims_on_the_paper_are_read_from_paper_md(notebook):
    rows = notebook.paper_rows("Ablation: size of FSQ")
    assert len(rows) == 7 and rows["d16 s9"][2] == 1.87
    assert len(notebook.paper_rows("Ablation: guidance")) == 5


# ---- the sweeps ------------------------------------------------------------------------------------------------------


def plan(name):
    return sweep.read(SWEEPS / f"{name}.yaml")


def test_sweep_files_are_good():
    for name in ("ablations", "ablations_more", "ablations_sampling"):
        runs = plan(name).runs
        assert len({run.folder for run in runs}) == len(runs)
        seeds = {}
        for run in runs:
            seeds.setdefault(json.dumps(run.parameters.get("changes") or run.parameters.get("model")), []).append(run.parameters["seed"])
        assert name == "ablations_sampling" or {tuple(found) for found in seeds.values()} == {(0, 1, 2)}
    orders = [run.parameters["seed"] for run in plan("ablations").runs]
    assert orders == sorted(orders), "seeds stand outermost: each variant has one before any has two"


def test_every_variant_can_be_built():
    for name in ("ablations", "ablations_more"):
        for run in plan(name).runs:
            preset("tiny").replace(**run.parameters["changes"])


def test_names_differ():
    runs = plan("ablations").runs + plan("ablations_more").runs
    names = {ablations.name_of(run.parameters["changes"]) for run in runs}
    assert 3 * len(names) == len(runs) and "default" in names and "fsq.kind none, fsq.dim 192" in names


def test_sampling_reads_the_models_of_the_defaults():
    """The folders that one sweep names are those that the other fills."""
    defaults = {run.parameters["seed"]: f"runs/ablations/{run.name}" for run in plan("ablations").runs if not run.parameters["changes"]}
    named = {
        run.parameters["seed"]: run.parameters["model"] for run in plan("ablations_sampling").runs if run.parameters["model"] != "tiny"
    }
    assert named == defaults


def test_mistyped_parameters_are_refused(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text(f"notebook: {SWEEPS / 'variant.ipynb'}\nlist: [{{change: {{fsq.dim: 4}}}}]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="did you mean 'changes'"):
        sweep.read(file)
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'sede'"):
        run_notebook("variant", tmp_path, {"sede": 1})


def run_notebook(name, tmp_path, parameters):
    settings = dict(cwd=str(SWEEPS), kernel_name="python3", progress_bar=False, execution_timeout=600)
    papermill.execute_notebook(str(SWEEPS / f"{name}.ipynb"), str(tmp_path / "out.ipynb"), parameters, **settings)


def gathered(notebook, variants, about, tmp_path, monkeypatch) -> dict:
    """What `gather` makes of a sweep of two variants, written in YAML, of which only the first was run, in four steps."""
    monkeypatch.setenv("VOX_BUDGET", "4")
    monkeypatch.setenv("VOX_HOME", str(tmp_path))
    file = tmp_path / "few.yaml"
    file.write_text(f"notebook: {SWEEPS / f'{notebook}.ipynb'}\nlist: {variants}\n", encoding="utf-8")
    first = sweep.read(file).runs[0]
    run_notebook(notebook, tmp_path, first.parameters | {"out": first.folder})
    return ablations.gather([file], tmp_path / "results", about)


@pytest.mark.slow
@pytest.mark.notebook
def test_a_run_is_gathered(tmp_path, monkeypatch):
    """The notebook of a variant in four steps; then what it left, through `gather`, with the runs that are missing beside it."""
    variants = "[{changes: {}, seed: 0, before: true}, {changes: {fsq.kind: noise}, seed: 0}]"
    tree = gathered("variant", variants, ablations.ABOUT, tmp_path, monkeypatch)
    (row,) = tree["variants"]
    assert row["name"] == "default" and row["steps"] == 4 and row["loss"].keys() == row["before"]["loss"].keys()
    assert len(row["speech"]["short"]) == len(tree["sentences"]["short"]) == 4
    assert tree["missing"] == [{"sweep": "few", "name": "fsq.kind noise", "seed": 0}]
    assert all((tmp_path / "results/samples" / sound).stat().st_size > 500 for sound in row["samples"].values())
    ablations.write(tmp_path / "tree.json", tree)
    assert files.read_json(tmp_path / "tree.json") == json.loads(json.dumps(tree))


# ---- the task --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held():
    return ablations.task()


def test_the_task_is_what_it_says(held):
    trained = set(held["train"]["text"])
    longest = max(map(len, trained))
    assert {row["speaker"].split("-")[0] for row in held["train"].select_columns(["speaker"])} == set(ablations.SEEN)
    for name, count in ablations.SETS.items():
        texts = [row["text"] for row in held[name]]
        assert len(set(texts)) == count and not trained & set(texts)
        assert {row["speaker"].split("-")[0] for row in held[name]} == set(
            ablations.UNSEEN if name in ("cloned", "prompts") else ablations.SEEN
        )
    assert min(len(row["text"]) for row in held["long"]) > longest
    assert [row["speaker"] for row in held["prompts"]] == [row["speaker"] for row in held["cloned"]]


def test_the_judge_hears_true_recordings_as_stored(held):
    assert ablations.sentences(held, judge.load()) == RESULTS["sentences"]


def test_losses_do_not_depend_on_the_caller(held):
    """The noise is the same at every call, and a wrong text costs a trained model something."""
    import torch

    import vox

    model, few = vox.load("tiny", device="cpu"), {name: rows[:4] for name, rows in held.items() if name != "train"}
    torch.manual_seed(1)
    first = ablations.losses(model, few)
    torch.manual_seed(2)
    assert ablations.losses(model, few) == first and first["gap"] > 0.1
