"""Notebook 01: what it defines equals vox and torch, its Explorer draws, and its solutions pass their own checks."""

import math
from pathlib import Path

import pytest
import torch
import torchaudio
from matplotlib.figure import Figure
from notebook_code import definitions
from torch.nn import functional as F

import vox
from vox.batch import Item, pack

PATH = Path(__file__).parent.parent / "notebooks" / "01_speech_and_text.ipynb"
WRONG = {  # exercise → answers that are nearly right, and a word of what is said of them
    1: [(1000, "folds")],
    2: [((512, 32.0), "31.2")],
    3: [(lambda n, N, P: n + math.ceil(N / 640 / P), "101 and 102")],
    4: [(lambda mask: (mask & ~F.pad(mask[:, 1:], (0, 1), value=True)).long(), "behind")],
    5: [(lambda wavs, samples: torch.cat([F.pad(wav, (0, -len(wav) % samples)) for wav in wavs]), "pause")],
}


@pytest.fixture(scope="module")
def code():
    code = definitions(PATH)
    code.rate = 16000
    return code


@pytest.fixture
def wav():
    return torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.parametrize(("n_fft", "hop"), [(256, 64), (400, 100)])
def test_the_transform_is_torchs(code, wav, n_fft, hop):
    torch.testing.assert_close(code.waves(n_fft) @ wav[:n_fft].to(torch.complex64), torch.fft.rfft(wav[:n_fft]), atol=1e-4, rtol=1e-3)
    padded = F.pad(wav, (n_fft // 2, n_fft // 2))
    wanted = torch.stft(padded, n_fft, hop, window=torch.hann_window(n_fft), center=False, return_complex=True).abs()
    torch.testing.assert_close(code.stft(wav, n_fft, hop), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("n_fft", "mels", "rate"), [(1024, 80, 16000), (512, 20, 8000)])
def test_the_mel_spectrogram_is_voxs(code, wav, n_fft, mels, rate):
    standard = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, 0.0, rate / 2, mels, rate, norm="slaney", mel_scale="slaney").T
    torch.testing.assert_close(code.mel_filters(n_fft, mels, rate), standard, atol=1e-6, rtol=1e-3)
    if rate == code.rate:
        torch.testing.assert_close(code.log_mel(wav, n_fft, 256, mels), vox.audio.mel(wav, rate, n_fft, 256, mels), atol=1e-3, rtol=1e-3)


def test_counts_are_those_of_packed_audio(code):
    config = vox.preset("tiny")
    for N in (1, 640, 641, 2560, 48001):
        latents, patches = code.count(N, config)
        assert patches == pack([Item(torch.tensor([5]), torch.zeros(latents, 3))], config.patch).patches
        assert (latents - 1) * config.vae.hop < N <= latents * config.vae.hop


def test_chinese_tokens_are_split_and_others_are_not(code):
    assert code.split_chinese(["▁four", "十二月", "a一"]) == ["▁four", "十", "二", "月", "a一"]


def test_joined_utterances_begin_with_a_patch(code, wav):
    together = code.join(wav, wav[:100] + 1, 2560)
    assert len(together) == 2 * 2560 + 2 * 2560 + 100
    assert torch.equal(together[:5000], wav) and not together[5000:10240].any() and torch.equal(together[10240:], wav[:100] + 1)


def test_the_explorer_draws_what_it_is_given(code, wav):
    code.wav, code.said = wav, "一 and one"
    figure, told = code.spectrogram(512, 128, 40)
    shown = figure.axes[0].images[0].get_array()
    torch.testing.assert_close(torch.as_tensor(shown.data), vox.audio.mel(wav, 16000, 512, 128, 40))
    assert "31.2 Hz a bin" in told and "32 ms, every 8.0 ms" in told and "5,000 numbers" in told and "empty" not in told
    assert "bands lie between two bins" in code.spectrogram(128, 64, 160)[1]


def test_pictures_of_sequences_show_every_position(code):
    code.KINDS = dict.fromkeys(("padding", "text", "patch", "mark", "last"), "#000000")
    batch = pack([Item(torch.tensor([5, 6]), torch.zeros(7, 3)), Item(torch.tensor([5]), torch.zeros(3, 3))], 4)
    figure = code.sequences(batch)
    assert isinstance(figure, Figure)
    assert [len(dots.get_offsets()) for dots in figure.axes[0].collections] == [2, 3, 1, 4, 2]  # of 2 · 6 positions
