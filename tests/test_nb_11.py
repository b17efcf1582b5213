"""Notebook 11: labels are where the synthesiser says, probes find what is there and no more, and figures follow from their rows."""

from pathlib import Path

import measure_tiny
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from notebook_code import definitions

import vox
from vox import espeak, files, inside, probes, state

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "data/results/inside.json"


@pytest.fixture(scope="module")
def code():
    """The notebook's functions, with what its cells would have read."""
    module = definitions(ROOT / "notebooks/11_inside.ipynb")
    module.found, module.arrays = found(), arrays()
    module.lines = {(line["model"], line["box"], line["label"], line["when"]): line for line in module.found["patches"]}
    module.said = {(line["model"], line["box"], line["what"]): line for line in module.found["voices"]}
    module.around = {(line["model"], line["label"], line["box"]): line for line in module.found["neighbours"]}
    module.legend, module.BOXES, module.KINDS = module.found["map"], list(inside.BOXES), list(inside.KINDS)
    module.singers = list(dict.fromkeys(each["speaker"] for each in module.legend["utterance"]))
    module.MARKERS = {"en-us": "o", "cmn": "^"}
    return module


def found():
    return files.read_json(RESULTS)


def arrays():
    return {name: tensor.numpy() for name, tensor in state.read_tensors(RESULTS.with_suffix(".safetensors")).items()}


@pytest.fixture(scope="module")
def nano():
    torch.manual_seed(0)
    return vox.VoxCPM(vox.preset("nano")).eval()


@pytest.fixture(scope="module")
def heard(nano):
    return inside.hear([("four hundred and twelve", "en-us", "f2-40-60-175"), ("三点二十五分", "cmn", "m3-50-50-170")], nano)


# ---- labels ------------------------------------------------------------------------------------------------------------


def test_marks_do_not_change_the_sound_and_move_with_it():
    """Moved along when the start is trimmed: a word begins where the sound does, not where espeak-ng's own output began."""
    marks, raw = [], []
    wav = espeak.reference("six", "en-us", "whisper-50-50-170", marks=marks)
    assert torch.equal(wav, espeak.reference("six", "en-us", "whisper-50-50-170"))
    own, hertz = espeak.synthesise("six", "en-us", "whisper", 50, 50, 170, raw)
    first, last = vox.audio.ends(vox.audio.resample(own, hertz, 16000))
    assert last - first >= len(wav) > 0
    assert [mark.second for mark in marks] == pytest.approx([mark.second - first / 16000 for mark in raw])
    assert [mark.what for mark in marks if mark.kind == "phone" and mark.what] == ["s", "ˈɪ", "k", "s"]
    assert all(-0.1 < mark.second < len(wav) / 16000 + 0.1 for mark in marks)


def test_a_longer_word_before_moves_the_next(nano):
    begins = {}
    for text in ("six two", "seventeen two"):
        marks = []
        espeak.reference(text, "en-us", "f2-40-60-175", marks=marks)
        begins[text] = inside.words(marks, text)
    assert [word for _, word in begins["seventeen two"]] == ["seventeen", "two"]
    assert begins["seventeen two"][1][0] > begins["six two"][1][0] + 0.1


def test_every_character_has_its_syllable():
    """Each of many Mandarin texts falls into its characters, in order, and no two begin at once."""
    for text, language, speaker in inside.spread("test", 1, 2):
        if language == "cmn":
            marks = []
            espeak.reference(text, language, speaker, marks=marks)
            begins = inside.words(marks, text)
            assert "".join(character for _, character in begins) == text
            assert (np.diff([second for second, _ in begins]) > 0).all()
    assert inside.syllable("三") == ("s", "a", "n")
    marks = []
    espeak.reference("三点", "cmn", "f2-40-60-175", marks=marks)
    with pytest.raises(ValueError, match="from 五 on"):
        inside.words(marks, "三五")


def test_a_patch_has_the_label_of_its_middle():
    begins = [(0.1, "a"), (0.2, "b"), (0.9, "c")]
    assert inside.at_the_middle(begins, 4, 0.3) == ["a", "b", "b", "c"]  # middles .15, .45, .75, 1.05
    assert inside.at_the_middle(begins, 1, 0.1) == ["a"]  # before the first: the first


def test_pitch_and_level_of_a_patch():
    t = torch.arange(16000) / 16000
    wav = torch.where(t < 0.5, 0.5 * torch.sin(2 * torch.pi * 200 * t), 0)
    pitch, level = inside.voiced(wav, 10, 0.1)
    assert pitch[1:4] == pytest.approx([12] * 3, abs=0.1) and np.isnan(pitch[6:]).all()
    assert level[2] == pytest.approx(20 * np.log10(0.5 / 2**0.5), abs=0.1) and level[8] == -80


def test_kinds_of_texts():
    rows = inside.choir(3, 8)
    assert len(rows) == 24 and len({speaker for *_, speaker in rows}) == 3 and len({text for text, *_ in rows}) == 8
    assert {speaker.rsplit("-", 3)[0] for *_, speaker in rows} <= set(espeak.voices("test"))
    assert {inside.kind_of(text, language) for text, language, _ in rows} == set(inside.KINDS)
    with pytest.raises(ValueError, match="no test text"):
        inside.kind_of("hello", "en-us")
    spread = inside.spread("test", 2, 3)
    assert len({text for text, *_ in spread}) == len(spread) == 24 * 2 * 3


def test_spans_of_a_made_up_matrix(code):
    scores = torch.full((7, 3), -9.0)
    for frame, symbol in enumerate((0, 1, 1, 0, 1, 2, 0)):  # 1 twice, parted by a blank
        scores[frame, symbol] = 0.0
    assert code.spans(scores, torch.tensor([1, 1, 2])) == [(1, 2), (4, 4), (5, 5)]


# ---- states ------------------------------------------------------------------------------------------------------------


def test_states_have_a_row_for_each_patch(code, nano, heard):
    """As the notebook reads them, whichever utterances stand beside in the batch; and labels as many."""
    all_states = inside.states(nano, heard)
    H, P, D = nano.config.tslm.hidden, nano.config.patch, nano.config.vae.latent_dim
    for each, vectors in zip(heard, all_states, strict=True):
        M = -(-len(each.latents) // P)
        assert len(each.phone) == len(each.word) == len(each.pitch) == len(each.level) == M
        sizes = {"z": P * D, "E": H, "h": H, "h_FSQ": H, "r": H, "μ": nano.config.locdit.hidden}
        assert {box: tuple(vector.shape) for box, vector in vectors.items()} == {box: (M, size) for box, size in sizes.items()}
        for box, vector in code.read(nano, each).items():
            torch.testing.assert_close(vector, vectors[box], atol=1e-4, rtol=1e-4)
    assert [each.word[-1] for each in heard] == ["twelve", "分"]


def test_a_model_without_a_residual_has_no_such_box(nano, heard):
    other = vox.VoxCPM(nano.config.replace(ralm="none")).eval()
    assert set(inside.states(other, heard)[0]) == {"z", "E", "h", "h_FSQ", "μ"}


def test_random_weights_are_others_and_repeatable(nano, heard):
    a, b, c = (inside.states(inside.untrained(nano, seed), heard)[0] for seed in (1, 1, 2))
    assert torch.equal(a["h"], b["h"]) and not torch.allclose(a["h"], c["h"], atol=1e-2) and torch.equal(a["z"], c["z"])


def test_next_pairs_stay_within_an_utterance(nano, heard):
    columns = inside.table(heard, inside.states(nano, heard))
    sizes = [len(each.word) for each in heard]
    X, y, owner = inside.pairs(columns, "h", "word", 1)
    assert len(X) == sum(sizes) - 2 and y.tolist() == heard[0].word[1:] + heard[1].word[1:]
    assert np.bincount(owner).tolist() == [size - 1 for size in sizes]
    np.testing.assert_array_equal(X[0], columns["h"][0])
    y = inside.pairs(columns, "h", "melody", 0)[1]
    assert not np.isnan(y).any() and abs(y.mean()) < 1e-4  # the voice's own pitch is taken away


# ---- probes ------------------------------------------------------------------------------------------------------------


def test_probes_find_what_lies_open_and_nothing_else():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 30)).astype(np.float32) * 10 ** rng.uniform(-3, 3, 30)
    names = np.array(["a", "b", "c"])
    open_, coin = names[(X / X.std(0) @ rng.normal(size=(30, 3))).argmax(1)], names[rng.integers(3, size=1500)]
    right = [np.mean(probes.classify(X[:1000], y[:1000], X[1000:]) == y[1000:]) for y in (open_, coin)]
    assert right[0] > 0.95 and 0.25 < right[1] < 0.42
    y, noise = 3 + (X / X.std(0)) @ rng.normal(size=30), rng.normal(size=1500)
    assert np.allclose(probes.regress(X[:1000], y[:1000], X[1000:]), y[1000:], atol=0.2)
    assert np.var(probes.regress(X[:1000], noise[:1000], X[1000:])) < 0.1


def test_a_probe_counts_by_utterance():
    """A label of the next patch that lies open in the present one: no errors ahead, errors here; and each utterance has its own count."""
    rng = np.random.default_rng(0)
    y = np.array(["a", "b"])[rng.integers(2, size=400)]
    columns = {
        "owner": np.repeat(np.arange(40), 10),
        "word": y,
        "h": np.roll(np.eye(2)[(y == "b").astype(int)], -1, 0),
        "level": rng.normal(size=400),
    }
    assert inside.probe(columns, columns, "h", "word", 1).tolist() == [[0, 9]] * 40
    counts = inside.probe(columns, columns, "h", "word", 0)
    assert counts[:, 1].tolist() == [10] * 40 and 0.3 < inside.value(counts, "word") < 0.6
    assert inside.commonest(columns, columns, "word") == pytest.approx(min(np.mean(y == "a"), np.mean(y == "b")))
    figure = inside.score(inside.probe(columns, columns, "h", "level", 0), "level")
    assert figure.low < figure.value < figure.high < 0.1 and figure.n == 40


def test_voices_that_differ_are_told_apart():
    rng = np.random.default_rng(0)
    speakers = [f"v{k // 16}-{40 + k // 8 % 2}-50-170" for k in range(160)]  # ten variants, two settings, eight utterances each
    own = {name: rng.normal(size=20) for name in dict.fromkeys(speakers)}
    noise = rng.normal(size=(160, 20)) * np.where(np.arange(20) < 2, 50, 0.3)  # two loud directions say nothing of the voice
    X = np.stack([own[name] for name in speakers]) + noise
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    assert probes.verification(unit, speakers, draws=0)[0] > 0.3
    rates = probes.verification(probes.whitened(X[:80], speakers[:80], X)[1], speakers, draws=20)
    assert rates.max() < 0.05 and len(rates) == 21
    lost = rng.normal(size=(160, 20))
    rates = probes.verification(lost / np.linalg.norm(lost, axis=1, keepdims=True), speakers, draws=20)
    assert 0.4 < rates[0] < 0.6 and 0 < rates.std() < 0.1


def test_neighbours_and_maps_keep_groups(code):
    rng = np.random.default_rng(0)
    which = np.repeat(["a", "b", "c"], 40)
    X = rng.normal(size=(120, 10)) + 8 * np.eye(10)[np.repeat([0, 1, 2], 40)]
    assert probes.neighbours(X, which).mean() > 0.95 and probes.neighbours(rng.normal(size=(120, 10)), which).mean() < 0.5
    Y = probes.tsne(X, 15, 250)
    assert Y.shape == (120, 2) and probes.neighbours(Y, which).mean() == 1
    assert np.allclose(Y, probes.tsne(X, 15, 250))
    P = probes.affinities(X, 15)
    assert np.allclose(P, P.T) and P.sum() == pytest.approx(1) and np.allclose(P, code.affinities(X, 15))
    each = P[0] / P[0].sum()
    assert 10 < np.exp(-np.sum(each * np.log(each, where=each > 0, out=np.zeros_like(each)))) < 25  # about as many neighbours
    assert np.allclose(code.tsne(X, 15, 30), probes.tsne(X, 15, 30), atol=1e-5)
    with pytest.raises(ValueError, match="too few"):
        probes.tsne(X, 50)


# ---- the results -------------------------------------------------------------------------------------------------------


def test_the_table_follows_from_its_rows():
    """Every figure about patches, and its interval, from the counts of each utterance; every figure about voices from its draws."""
    results, raw = found(), arrays()
    assert len(results["patches"]) == 11 * 5 * 2 and len(results["voices"]) == 11 * 2
    for line in results["patches"]:
        counts = raw["{model}/{box}/{label}/{when}".format(**line)]
        figure = inside.score(counts.astype(float), line["label"])
        assert [line["value"], line["low"], line["high"]] == pytest.approx(figure[:3], abs=1e-4) and line["n"] == figure.n
        assert len(line["seeds"]) == len(results["config"]["seeds"]) >= 3
        assert min(line["seeds"]) - 1e-9 <= line["value"] <= max(line["seeds"]) + 1e-9
    for line in results["voices"]:
        rates = raw["{model}/{box}/{what}".format(**line)]
        assert [line["value"], line["low"], line["high"]] == pytest.approx([rates[0], *np.quantile(rates[1:], (0.025, 0.975))], abs=1e-4)


def test_the_results_are_of_the_weights_that_ship():
    which = measure_tiny.weights(ROOT / "data/checkpoints/tiny")
    assert found()["weights"] == which, "inside.json is of other weights: python tests/measure_inside.py, then store notebook 11"


def test_a_past_of_its_own_brought_the_voice_to_the_residual():
    """What the notebook says of before and after: the plan is as it was, and r and μ hold more than twice as much of the speaker."""
    earlier, now = (
        {line["box"]: line for line in tree["neighbours"] if (line["model"], line["label"]) == ("trained", "speaker")}
        for tree in (files.read_json(RESULTS.with_name("inside_before.json")), found())
    )
    assert all(now[box]["low"] > earlier[box]["high"] for box in ("E", "r", "μ"))
    assert all(now[box]["value"] > 2 * earlier[box]["value"] for box in ("r", "μ"))
    assert all(now[box]["low"] < earlier[box]["high"] and earlier[box]["low"] < now[box]["high"] for box in ("h", "h_FSQ"))
    shares = {"h": 1 / 4, "h_FSQ": 1 / 4, "r": 3 / 4, "μ": 4 / 5}
    assert {box: now[box]["value"] for box in shares} == pytest.approx(shares, abs=0.03)


def test_training_took_the_voice_from_the_plan_and_opened_it_in_the_residual():
    """What the notebook says of voices in trained and random boxes."""
    voices = {(line["model"], line["box"], line["what"]): line for line in found()["voices"]}
    for what in ("verified", "identified"):
        assert voices["trained", "h_FSQ", what]["low"] > voices["random", "h_FSQ", what]["high"], what
        assert voices["trained", "r", what]["value"] < voices["random", "r", what]["value"], what
        assert voices["trained", "r", what]["value"] <= voices["trained", "E", what]["value"], what
    assert voices["trained", "r", "identified"]["high"] < voices["random", "r", "identified"]["low"]


def test_maps_have_a_point_for_each_name():
    results, raw = found(), arrays()
    assert RESULTS.with_suffix(".safetensors").stat().st_size <= 1_000_000
    for name in ("trained", "random"):
        Y = raw[f"map/{name}/utterance/h"].astype(float)
        assert Y.shape == (len(results["map"]["utterance"]), 2) and np.isfinite(Y).all()
        assert raw[f"map/{name}/patch/h"].shape == (len(results["map"]["patch"]["word"]), 2)
    assert {"command", "weights", "machine", "seconds", "config"} <= results.keys()


def test_measuring_a_small_model(nano):
    """The whole way, on a handful: every box and question is there, the patch itself only once."""
    known = inside.hear(inside.spread("validation", 1, 2)[:12], nano)
    fresh = inside.hear(inside.spread("test", 1, 2)[:16], nano)
    results, raw = inside.measure(nano, known, fresh, inside.hear(inside.choir(2, 8), nano), seeds=(0, 1))
    assert {(line["model"], line["box"]) for line in results["patches"]} == {("trained", box) for box in inside.BOXES} | {
        ("random", box) for box in inside.BOXES[1:]
    }
    assert raw["random/r/word/next"].shape == (16, 2) and raw["trained/z/verified"].shape == (201,)
    assert len(results["neighbours"]) == 11 * 3 and len(results["map"]["patch"]["word"]) == 16 * inside.SAMPLED
    files.json.dumps(results, allow_nan=False)


# ---- the notebook ------------------------------------------------------------------------------------------------------


def test_verdicts_have_the_right_sign(code):
    """A box is better than another if it makes fewer errors, on any scale."""
    code.arrays = arrays() | {
        "trained/A/word/heard": np.array([[1, 10.0], [2, 10]]),
        "trained/B/word/heard": np.array([[6, 10.0], [7, 10]]),
    }
    gap = code.paired(("trained", "A"), "word", "heard", ("trained", "B"))
    assert gap.value == 0.5 and code.verdict(gap) == "holds"
    assert code.verdict(code.paired(("trained", "B"), "word", "heard", ("trained", "A"))) == "does not hold"
    assert code.verdict(gap._replace(low=-0.1)) == "cannot tell"
    code.arrays |= {"trained/A/verified": np.full(9, 0.1), "trained/B/verified": np.full(9, 0.3)}
    assert code.voices_apart("A", "B").low == pytest.approx(0.2)
    for label, worst in (("word", max), ("pitch", min)):
        order = code.best(label, "heard")
        figures = [code.lines["trained", box, label, "heard"]["value"] for box in order]
        assert figures[-1] == worst(figures)


def test_the_papers_table_is_read(code):
    rows = code.paper_table("Who carries what")
    assert rows[-1] == ["RALM", "53.49", "64.85", "13.24"] and len(rows) == 4


def test_pictures_can_be_drawn(code):
    code.arrays = arrays()
    assert len(code.draw_boxes(inside.VALUES, "R²", dict.fromkeys(inside.VALUES, 0)).axes) == 6
    assert isinstance(code.draw_voices(), Figure)
    for model, points, box, colour in (
        ("trained", "patch", "h", "word"),
        ("random", "utterance", "z", "speaker"),
        ("trained", "utterance", "μ", "word"),
    ):
        figure, note = code.draw_map(model, points, box, colour)
        drawn = sum(len(each.get_offsets()) for each in figure.axes[0].collections)
        assert drawn == len(code.arrays[f"map/trained/{points}/h"])  # each point once
        assert ("of the five nearest" in note) == (colour == "speaker") and ("no one word" in note) == (
            points == "utterance" and colour == "word"
        )


def test_lesions_are_undone(code, nano, heard):
    """Each cut changes the loss while it lasts, and only then. Rounding is finer than a fresh model's states matter: its codes change."""
    code.net, code.seed = nano, 0
    vectors = inside.states(nano, heard)
    code.mean_of = {box: torch.cat([each[box] for each in vectors]).mean(0) for box in ("h_FSQ", "r")}
    code.CUTS = ("nothing", "no residual", "no plan", "FSQ off")
    whole = code.losses(heard, "nothing")
    for cut in code.CUTS[1:]:
        before = nano.condition, nano.fsq.config
        with code.lesion(cut) as hurt:
            codes = hurt.fsq.codes(torch.randn(3, nano.config.tslm.hidden))
            assert (cut == "FSQ off") == (not torch.allclose(codes * 9, (codes * 9).round(), atol=1e-4))
            plan, r = torch.randn(2, 3, nano.config.tslm.hidden)
            mu = hurt.condition(plan, r)
            assert torch.allclose(mu, hurt.condition(plan, 0 * r)) == (cut == "no residual")
            assert torch.allclose(mu, hurt.condition(0 * plan, r)) == (cut == "no plan")
        assert (nano.condition, nano.fsq.config) == before
        assert np.array_equal(code.losses(heard, "nothing"), whole)
