"""What a step sees is a function of (seed, step); utterances are encoded once, and joined as if they had been said in one go."""

import dataclasses
from types import SimpleNamespace

import datasets
import pytest
import torch
from accelerate import Accelerator

from vox import AudioVAE, VoxCPM, audio, feed, flow, preset
from vox.batch import Item
from vox.config import TransformerConfig, VAETrainConfig
from vox.files import cache_folder
from vox.text import join_texts

STACK = TransformerConfig(layers=1, hidden=16, ffn=16, heads=2, kv_heads=1)
CONFIG = preset("nano").replace(
    tslm=STACK, locenc=STACK, locdit=STACK, **{"fsq.dim": 4, "vae.encoder_dim": 2, "vae.decoder_dim": 32, "vae.latent_dim": 4}
)
TRAIN = dataclasses.replace(CONFIG.train, batch=4, join=0.0, max_seconds=3.0)
TEXTS = ("one", "two", "three", "four", "五", "六", "seven and a half", "eight")


def speech(seconds, seed):
    """Something loud that never repeats."""
    return torch.rand(int(seconds * 16000), generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.fixture
def data():
    rows = [
        {
            "audio": {"bytes": audio.encode(speech(0.3 + 0.1 * i, i), 16000), "path": None},
            "text": text,
            "speaker": ("anna", "bert")[i % 2] if i < 6 else "",
        }
        for i, text in enumerate(TEXTS)
    ]
    return datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("VOX_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    vae = AudioVAE(CONFIG.vae)
    with torch.no_grad():
        for name, weight in vae.named_parameters():  # as if trained: a fresh encoder, its biases zero, answers silence with silence
            if name.endswith("bias"):
                weight.uniform_(-0.1, 0.1)
    return VoxCPM(CONFIG, vae).eval()


def utterances(model, data, **changes):
    return feed.Utterances(model, data, dataclasses.replace(TRAIN, **changes), Accelerator(), feed.data_hash(data), progress=False)


def test_generators_depend_on_their_key_alone():
    first = torch.rand(3, generator=feed.generator(0, "flow", 17))
    assert torch.equal(first, torch.rand(3, generator=feed.generator(0, "flow", 17)))
    others = [
        torch.rand(3, generator=feed.generator(*key)) for key in ((0, "flow", 18), (1, "flow", 17), (0, "clips", 17), (0, "flow", 1, 7))
    ]
    assert not any(torch.equal(first, other) for other in others)


def test_parts_cover_the_batch():
    for total, world in ((8, 1), (8, 2), (7, 3), (32, 5)):
        parts = [list(range(total))[feed.part(total, rank, world)] for rank in range(world)]
        assert sum(parts, []) == list(range(total)) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_an_epoch_visits_every_row_once_in_batches_of_equal_length():
    lengths = torch.randint(1, 1000, (640,)).tolist()
    order = feed.Order(640, 8, seed=0, length=lambda sequence: lengths[sequence[0]])
    epoch = [order[step] for step in range(80)]
    assert sorted(row for batch in epoch for (row,) in batch) == list(range(640))
    spread = [max(lengths[row] for (row,) in batch) - min(lengths[row] for (row,) in batch) for batch in epoch]
    assert sum(spread) / len(spread) < 100  # rows drawn at random would be about 780 apart
    shortest = [min(lengths[row] for (row,) in batch) for batch in epoch]
    assert shortest != sorted(shortest)  # and not from short to long
    assert order[80] != epoch[0]
    fresh = feed.Order(640, 8, seed=0, length=lambda sequence: lengths[sequence[0]])
    assert fresh[79] == epoch[79] and fresh[3] == epoch[3]  # in whatever order it is asked
    assert feed.Order(640, 8, seed=1)[0] != feed.Order(640, 8, seed=0)[0]


def test_few_rows_repeat_within_a_batch():
    (batch, again) = (feed.Order(3, 8, seed=0)[step] for step in (0, 1))
    assert len(batch) == 8 and {row for (row,) in batch} == {0, 1, 2} and batch != again


def test_clips_are_shared_between_processes():
    waves = [speech(0.5, i) for i in range(9)] + [speech(0.05, 9)]
    clips = feed.ClipFeed(waves, VAETrainConfig(batch=5, clip_seconds=0.16), CONFIG.vae)
    for step in (0, 7):
        wav, noise, share = clips(step)
        assert wav.shape == (5, 1, 2560) and noise.shape == (5, 4, 4) and share == 1
        parts = [clips(step, rank, 2) for rank in (0, 1)]
        assert torch.equal(torch.cat([part[0] for part in parts]), wav)
        assert torch.equal(torch.cat([part[1] for part in parts]), noise)
        assert sum(part[2] for part in parts) == 1
    assert not torch.equal(clips(0)[1], clips(1)[1])
    assert torch.equal(clips.clip(9, 0.9), torch.cat((waves[9], torch.zeros(1760))))  # a short recording, then silence
    assert torch.equal(clips.clip(0, 0.999999), waves[0][-2560:]) and torch.equal(clips.clip(0, 0.0), waves[0][:2560])


def test_packed_batches_are_shared_between_processes():
    items = [Item(torch.randint(110, 300, (3 + i,)), torch.randn(5 + 7 * i, 4)) for i in range(8)]
    speeches = feed.SpeechFeed(feed.Items(items, CONFIG.patch), dataclasses.replace(TRAIN, batch=6), CONFIG)
    batch, draw, share = speeches(5)
    halves = [speeches(5, rank, 2) for rank in (0, 1)]
    assert share == 1 and sum(half[2] for half in halves) == pytest.approx(1)
    assert sum(half[0].patches for half in halves) == batch.patches == len(draw.t)
    for whole, *parts in zip(draw, *(half[1] for half in halves), strict=True):
        assert torch.equal(torch.cat(parts), whole)
    latents = torch.cat([half[0].latents[half[0].loss_mask] for half in halves])
    assert torch.equal(latents, batch.latents[batch.loss_mask])
    expected = flow.draw(batch.patches, CONFIG.patch, 4, CONFIG.flow, feed.generator(TRAIN.seed, "flow", 5))
    assert all(torch.equal(a, b) for a, b in zip(draw[:3], expected[:3], strict=True)) and not draw.own.any()


def test_sequences_go_on_from_own_patches():
    """From a patch on to the end of a sequence, in the share that was asked for; the other draws stay what they are without."""
    items = [Item(torch.randint(110, 300, (3 + i,)), torch.randn(5 + 7 * i, 4)) for i in range(8)]
    recipes = [dataclasses.replace(TRAIN, batch=6, own=own) for own in (0, 0.5)]
    plain, mixed = (feed.SpeechFeed(feed.Items(items, CONFIG.patch), recipe, CONFIG) for recipe in recipes)
    (_, before, _), (batch, draw, _) = plain(2), mixed(2)
    assert all(torch.equal(a, b) for a, b in zip(draw[:3], before[:3], strict=True))
    assert torch.equal(draw.own, torch.cat([mixed(2, rank, 2)[1].own for rank in (0, 1)])) and len(draw.own) == batch.patches
    counts = torch.randint(1, 30, (4000,), generator=feed.generator("counts")).tolist()
    rows = feed.own_patches(counts, 0.5, feed.generator("own")).split(counts)
    assert all(row[first:].all() for row in rows for first in row.nonzero()[:1, 0]), "one that began goes on to the end"
    assert sum(row.any() for row in rows) / 4000 == pytest.approx(0.5, abs=0.03)
    assert sum(row.float().mean() for row in rows if row.any()) / 2000 == pytest.approx(0.53, abs=0.05), "the first is any of them"


def test_long_utterances_are_left_out_and_said_to_be():
    items = [Item(torch.tensor([110]), torch.randn(length, 4)) for length in (10, 75, 76)]  # 25 latents a second
    with pytest.warns(UserWarning, match="1 of 3 utterances are longer than max_seconds 3.0"):
        speeches = feed.SpeechFeed(feed.Items(items, CONFIG.patch), TRAIN, CONFIG)
    assert speeches.rows == [0, 1] and speeches.dropped == 1
    with pytest.raises(ValueError, match="each of the 1 utterances is longer"):
        feed.SpeechFeed(feed.Items(items[2:], CONFIG.patch), TRAIN, CONFIG)
    with pytest.raises(ValueError, match="no training data"):
        feed.SpeechFeed(feed.Items([], CONFIG.patch), TRAIN, CONFIG)
    with pytest.raises(ValueError, match="token id 999 and config.vocab is 512"):
        feed.SpeechFeed(feed.Items([Item(torch.tensor([999]), torch.randn(10, 4))], CONFIG.patch), TRAIN, CONFIG)


def test_an_utterance_is_its_padded_recording_encoded(model, data):
    source = utterances(model, data, join=0.5)
    for row in (0, 5):
        wav = feed.Waves(data, 16000)[row]
        wav = torch.nn.functional.pad(wav, (0, -len(wav) % 2560))
        item = source.item((row,))
        torch.testing.assert_close(item.latents, model.vae.encode(wav[None, None])[0].mT, rtol=1e-5, atol=1e-5)  # values are about 1
        assert item.text.tolist() == model.tokenizer.encode(TEXTS[row])
        assert source.frames((row,)) == len(item.latents)


def test_joined_utterances_are_one_recording(model, data, monkeypatch):
    """With a pause as long as the encoder's memory, joining latents and encoding joined recordings are the same."""
    monkeypatch.setattr(feed, "PAUSE", 1.28)
    source = utterances(model, data, join=0.5)
    monkeypatch.setattr(source, "pauses", lambda sequence: [source.quiet, source.quiet, 0])
    waves, parts = feed.Waves(data, 16000), []
    for row in (0, 2, 4):
        parts += [waves[row], torch.zeros(-len(waves[row]) % 2560 + source.quiet * 640)]
    wav = torch.cat(parts)[: -source.quiet * 640]
    item = source.item((0, 2, 4))
    expected = model.vae.encode(wav[None, None])[0].mT
    torch.testing.assert_close(item.latents, expected, rtol=1e-4, atol=1e-5)
    assert source.frames((0, 2, 4)) == len(expected)
    assert item.text.tolist() == model.tokenizer.encode(join_texts(join_texts("one", "three"), "五"))
    cold = torch.cat([source.latents[row][0] for row in (0, 2, 4)])[: len(expected)]  # each as if it began the recording
    assert (cold - expected).abs().max() > 100 * (item.latents - expected).abs().max()


@pytest.mark.parametrize("quiet", [0, 4, 8])
def test_both_versions_of_an_utterance(model, quiet):
    """What begins a recording, and what follows a pause shorter than the encoder's memory; long and short ones, alone and together."""
    wavs = [speech(seconds, 1) for seconds in (2.0, 0.1, 0.7)]
    for batch in (wavs, *([wav] for wav in wavs)):
        for wav, (first, later) in zip(batch, feed.encode(model.vae, batch, 4, quiet), strict=True):
            wav = torch.nn.functional.pad(wav, (quiet * 640, -len(wav) % 2560 + quiet * 640))
            after = model.vae.encode(wav[None, None])[0].mT[quiet:]
            alone = model.vae.encode(wav[None, None, quiet * 640 :])[0].mT
            torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(later, after, rtol=1e-4, atol=1e-5)


def test_pauses_are_drawn_per_joint_and_end_nothing(model, data):
    source = utterances(model, data, join=0.5)
    assert source.quiet == 2 * source.patch
    drawn = [source.pauses((first, second, 4)) for first in range(20) for second in range(20)]
    assert {pause for first, second, _ in drawn for pause in (first, second)} == {0, source.patch, 2 * source.patch}
    assert {last for *_, last in drawn} == {0} and any(first != second for first, second, _ in drawn)
    assert drawn == [source.pauses((first, second, 4)) for first in range(20) for second in range(20)]  # and the same each time
    for sequence in ((0,), (0, 2), (2, 0), (0, 2, 4), (4, 2, 0)):
        pieces, spoken = [], source.item(sequence).latents
        for place, (row, pause) in enumerate(zip(sequence, source.pauses(sequence), strict=True)):
            version = source.latents[row][place > 0]
            pieces += [version[: len(version) - source.quiet], version[len(version) - source.quiet :][:pause]]
        assert torch.equal(spoken, torch.cat(pieces)) and source.frames(sequence) == len(spoken)


def test_only_one_voice_is_joined(model, data):
    speeches = feed.SpeechFeed(utterances(model, data, join=1.0), dataclasses.replace(TRAIN, join=1.0, batch=8), CONFIG)
    sequences = [sequence for step in range(20) for sequence in speeches.order[step]]
    sizes = {len(sequence) for sequence in sequences}
    assert sizes == {1, 2, 3}
    for sequence in sequences:
        assert len(set(sequence)) == len(sequence) and len({data[row]["speaker"] for row in sequence}) == 1
        assert len(sequence) == 1 or data[sequence[0]]["speaker"] != ""  # rows without a speaker stay alone
        assert speeches.source.frames(sequence) <= 75
    batch, draw, _ = speeches(3)
    assert batch.patches == len(draw.t) == sum(map(speeches.patches, speeches.order[3]))
    alone = feed.SpeechFeed(utterances(model, data), TRAIN, CONFIG)
    assert {len(sequence) for step in range(5) for sequence in alone.order[step]} == {1}


def test_latents_are_encoded_once(model, data, monkeypatch):
    monkeypatch.setattr(feed, "SHARD", 3)
    calls = []
    encode = AudioVAE.encode
    monkeypatch.setattr(AudioVAE, "encode", lambda vae, wav: calls.append(1) or encode(vae, wav))
    first = utterances(model, data)
    files = sorted(cache_folder().glob("latents/*/*.safetensors"))
    assert len(files) == 3 and len(calls) == 8
    again = utterances(model, data)
    assert len(calls) == 8 and all(torch.equal(a[0], b[0]) for a, b in zip(first.latents, again.latents, strict=True))
    files[1].unlink()  # as if a run had been killed before it came to this file
    repaired = utterances(model, data)
    assert len(calls) == 11 and all(torch.equal(a[0], b[0]) for a, b in zip(first.latents, repaired.latents, strict=True))
    with torch.no_grad():
        model.vae.encoder.fc_mu.bias += 1
    other = utterances(model, data)
    assert len(calls) == 19 and torch.allclose(other.latents[0][0], first.latents[0][0] + 1, atol=1e-5)
    utterances(model, data.select(range(7)))
    assert len(calls) == 26


def test_processes_that_look_at_different_times_leave_no_gap(model, data, monkeypatch, tmp_path):
    """Each process has its own shards, whatever the others have written by the time it looks."""
    monkeypatch.setattr(feed, "SHARD", 2)
    alone = utterances(model, data).latents
    waves, folder = feed.Waves(data, 16000), tmp_path / "shared"

    def process(rank, wait):
        return SimpleNamespace(
            process_index=rank, num_processes=2, device=torch.device("cpu"), is_main_process=False, wait_for_everyone=wait
        )

    def second():  # while the first one waits for it
        feed.encoded(model.vae, waves, CONFIG.patch, 0, folder, process(1, lambda: None), False)

    together = feed.encoded(model.vae, waves, CONFIG.patch, 0, folder, process(0, second), False)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(together, alone, strict=True))


def test_the_hash_of_data_is_that_of_its_content(data):
    copy = datasets.Dataset.from_list(data.to_list()).cast_column("audio", datasets.Audio(decode=False))
    assert feed.data_hash(data) == feed.data_hash(copy)
    changed = data.to_list()
    changed[3]["text"] = "forty"
    assert feed.data_hash(datasets.Dataset.from_list(changed)) != feed.data_hash(data)
    assert feed.data_hash(data.select(range(7))) != feed.data_hash(data)
    wavs = [speech(0.1, 0), speech(0.1, 1)]
    assert feed.data_hash(wavs) == feed.data_hash([wav.clone() for wav in wavs]) != feed.data_hash(wavs[::-1])


def test_latent_scale_is_the_deviation_of_each_channel():
    torch.manual_seed(0)
    vae = AudioVAE(CONFIG.vae)
    waves = feed.Waves([speech(0.6, i) for i in range(5)], 16000)
    scale = feed.latent_scale(vae, waves, seed=0)
    with torch.no_grad():
        latents = torch.cat([vae.encode(waves[i][None, None])[0] for i in range(5)], 1)
        torch.testing.assert_close(scale, latents.std(1))
        vae.rescale_(scale)
        torch.testing.assert_close(feed.latent_scale(vae, waves, seed=0), torch.ones(4), rtol=1e-4, atol=1e-4)
        vae.rescale_(torch.tensor([1.0, 1.0, 1.0, 1e4]))  # a channel that does not move is not blown up
    assert feed.latent_scale(vae, waves, seed=0)[3] == pytest.approx(0.1, rel=1e-3)


def test_channels_that_say_less_than_their_noise_are_dropped(data):
    vae = AudioVAE(CONFIG.vae)
    with torch.no_grad():
        vae.encoder.fc_mu.scale_(torch.tensor([1.0, 1e-3, 1.0, 1.0]), 0)
        vae.encoder.fc_logvar.bias[3] = 5.0
    slim = feed.without_silence(vae, data)
    assert slim.config.latent_dim == 2 and not any(p.is_inference() for p in slim.parameters())  # it can be trained on
    wav = speech(0.6, 9)[None, None]
    with torch.no_grad():
        torch.testing.assert_close(slim.encode(wav), vae.encode(wav)[:, [0, 2]])
        vae.encoder.fc_logvar.bias.fill_(5.0)
    assert feed.without_silence(vae, data) is vae  # hardly trained: nothing is left to drop to
