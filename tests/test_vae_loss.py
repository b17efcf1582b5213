"""The AudioVAE's losses: by hand, against torchaudio and torch.distributions, and at the edges (silence, short clips)."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
import torchaudio

from vox import vae_loss
from vox.vae_loss import Discriminators, LogMel, MelDistance, WaveformDistance, discriminator_loss, feature_loss, generator_loss, kl

RATE = 16000


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sine(hz, batch=1, samples=4096):
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(samples) / RATE).expand(batch, 1, samples)


@pytest.fixture(scope="module")
def mel_distance():
    return MelDistance(RATE)


# waveform distance


def test_the_waveform_hears_phase_and_pitch_below_600_hz_and_nothing_above():
    distance = WaveformDistance(RATE)
    wav = sine(150)
    assert distance(wav, wav) == 0
    assert distance(torch.zeros_like(wav), wav).item() == pytest.approx(1, abs=0.01)
    assert distance(-wav, wav).item() == pytest.approx(4, abs=0.05)  # the opposite phase
    assert distance(sine(200), wav).item() == pytest.approx(2, abs=0.2)  # another pitch: as if the phase were random
    assert distance(wav + sine(2000), wav) < 1e-3
    quiet = 1e-4 * wav
    assert distance(torch.zeros_like(quiet), quiet) < 0.1  # next to silence errors weigh next to nothing


def test_the_waveform_pulls_the_wave_only_and_names_clips_that_are_too_short():
    wav, target = torch.zeros(1, 1, 4096, requires_grad=True), sine(150).clone().requires_grad_()
    WaveformDistance(RATE)(wav, target).backward()
    assert wav.grad.isfinite().all() and wav.grad.abs().sum() > 0 and target.grad is None
    with pytest.raises(ValueError, match="at least 513"):
        WaveformDistance(RATE)(torch.zeros(1, 1, 512), torch.zeros(1, 1, 512))


# mel distance


def test_equal_waves_have_no_distance_and_more_loudhas_more(mel_distance):
    wav = sine(220, batch=2)
    distances = [mel_distance(wav + level * noise(2, 1, 4096), wav).item() for level in (0.0, 0.001, 0.01, 0.1)]
    assert distances[0] == 0
    assert all(a < b for a, b in pairwise(distances))


def test_order_of_the_batch_does_not_matter(mel_distance):
    wav, target = noise(4, 1, 4096), noise(4, 1, 4096, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(mel_distance(wav, target), mel_distance(wav[order], target[order]), rtol=1e-6)


def test_a_wave_half_as_loud_costs_log_two_at_every_scale():
    loud = 0.5 * noise(1, 1, 8000)
    scales = [scale for scale in MelDistance(RATE).scales if (scale.bank.sum(1) > 0).all()]
    assert len(scales) >= 4
    for scale in scales:
        difference = scale(loud[:, 0]) - scale(loud[:, 0] / 2)
        assert torch.allclose(difference, torch.full_like(difference, math.log10(2)), atol=1e-5)
    assert MelDistance(RATE)(loud / 2, loud) < 7 * math.log10(2) + 1e-4  # empty filters add nothing


@pytest.mark.parametrize(("window", "mels"), [(512, 80), (2048, 320)])
def test_mel_values_equal_torchaudio(window, mels):
    wav = noise(2, 8000)
    options = dict(n_fft=window, hop_length=window // 4, n_mels=mels, power=1.0, norm="slaney", mel_scale="slaney")
    expected = torchaudio.transforms.MelSpectrogram(RATE, **options)(wav).clamp(min=1e-5).log10().mT
    assert torch.allclose(LogMel(RATE, window, mels)(wav), expected, atol=1e-5)


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100, 48000])
def test_any_sample_rate_builds_without_warnings_and_reaches_its_own_nyquist(rate):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distance = MelDistance(rate)
    bank = distance.scales[-1].bank  # [320, 1025]
    assert torch.isfinite(bank).all()
    assert bank[-1, -20:].max() > 0  # the last filter ends at half the sample rate
    assert distance(noise(1, 1, 2000), noise(1, 1, 2000, seed=1)) > 0


def test_gradient_is_finite_at_silence_and_reaches_the_wave_only(mel_distance):
    target = sine(300).requires_grad_()
    for wav in (torch.zeros(1, 1, 4096), torch.full((1, 1, 4096), 1e-4)):
        wav.requires_grad_()
        mel_distance(wav, target).backward()
        assert torch.isfinite(wav.grad).all()
    assert wav.grad.abs().sum() > 0  # the second wave, quiet but not silent, is pulled towards the target
    assert target.grad is None


def test_distance_guides_a_wave_downhill(mel_distance):
    target = noise(1, 1, 4096) * 0.1
    wav = (target + 0.05 * noise(1, 1, 4096, seed=1)).requires_grad_()
    before = mel_distance(wav, target)
    before.backward()
    after = mel_distance(wav.detach() - 1e-3 * wav.grad / wav.grad.abs().max(), target)
    assert after < before


def test_autocast_does_not_change_the_distance(mel_distance):
    wav, target = noise(1, 1, 4096), noise(1, 1, 4096, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        cast = mel_distance(wav, target)
    assert cast == mel_distance(wav, target)


def test_checkpoints_hold_no_filterbanks(mel_distance):
    assert not mel_distance.state_dict()
    disc = Discriminators(RATE, 1 / 32)
    assert set(disc.state_dict()) == {name for name, _ in disc.named_parameters()}


def test_short_clips_work_down_to_half_a_window_then_say_what_to_do(mel_distance):
    least = noise(1, 1, 1025)
    assert mel_distance(least, noise(1, 1, 1025, seed=1)) > 0
    disc = Discriminators(RATE, 1 / 32)
    assert len(disc(least)) == 8
    for call in (lambda wav: mel_distance(wav, wav), disc):
        with pytest.raises(ValueError, match=r"1024 samples.*2048-sample window.*0\.064 s at 16000 Hz.*longer clips"):
            call(noise(1, 1, 1024))


def test_wrong_shapes_are_refused(mel_distance):
    with pytest.raises(ValueError, match="same shape"):
        mel_distance(noise(1, 1, 4096), noise(1, 1, 4095))
    with pytest.raises(ValueError, match=r"must be \[B, 1, N\]"):
        mel_distance(noise(2, 4096), noise(2, 4096))
    with pytest.raises(ValueError, match=r"must be \[B, 1, N\]"):
        Discriminators(RATE, 1 / 32)(noise(2, 2, 4096))


# discriminators


@pytest.mark.parametrize("samples", [4098, 4099, 5003])
def test_discriminators_shapes(samples):
    features = Discriminators(RATE, 1 / 16)(noise(2, 1, samples))
    assert len(features) == 8
    for period, maps in zip(vae_loss.PERIODS, features[:5], strict=True):
        assert [m.shape[1] for m in maps] == [2, 8, 32, 64, 64, 1]
        folded = math.ceil(samples / period)
        assert maps[0].shape == (2, 2, (folded - 1) // 3 + 1, period)
        assert all(m.shape[-1] == period for m in maps)
    for window, maps in zip(vae_loss.WINDOWS, features[5:], strict=True):
        frames = samples // (window // 4) + 1
        assert len(maps) == 5 * 5 + 1
        assert all(m.shape[0] == 2 and m.shape[2] == frames for m in maps)
        assert sum(m.shape[-1] for m in maps[:-1:5]) == window // 2 + 1  # the bands tile the frequency axis
        assert maps[-1].shape == (2, 1, frames, sum(m.shape[-1] for m in maps[4:-1:5]))


def test_width_one_has_the_sizes_of_dac():
    with torch.device("meta"):  # sizes only
        disc = Discriminators(RATE)
        small = Discriminators(RATE, 0.125)
    mpd = 32 * 5 + 128 * 32 * 5 + 512 * 128 * 5 + 1024 * 512 * 5 + 1024 * 1024 * 5 + 1024 * 3  # weights of one period
    mrd = 5 * (32 * 2 * 27 + 3 * 32 * 32 * 27 + 32 * 32 * 9) + 32 * 9
    weights = sum(p.numel() for n, p in disc.named_parameters() if n.endswith("weight.original1"))
    assert weights == 5 * mpd + 3 * mrd
    assert sum(p.numel() for p in small.parameters()) < 0.7e6


def test_loudness_and_offset_are_no_clue_and_silence_is_harmless():
    disc = Discriminators(RATE, 1 / 16)
    wav = noise(1, 1, 3000)
    for a, b in zip(disc(wav), disc(0.1 * wav + 0.05), strict=True):
        assert torch.allclose(a[-1], b[-1], atol=1e-4)
    silence = torch.zeros(1, 1, 3000, requires_grad=True)
    generator_loss(disc(silence)).backward()
    assert torch.isfinite(silence.grad).all()
    assert silence.grad.abs().max() < 100


def test_real_and_fake_may_share_one_call():
    disc = Discriminators(RATE, 1 / 16)
    real, fake = noise(2, 1, 3000), 0.1 * noise(2, 1, 3000, seed=1)
    for both, a, b in zip(disc(torch.cat([real, fake])), disc(real), disc(fake), strict=True):
        for stacked, x, y in zip(both, a, b, strict=True):
            assert torch.allclose(stacked, torch.cat([x, y]), atol=1e-5)


def test_twenty_steps_tell_a_sine_from_noise():
    torch.manual_seed(0)
    disc = Discriminators(RATE, 1 / 16)
    optimiser = torch.optim.AdamW(disc.parameters(), 5e-3, betas=(0.8, 0.99))
    for step in range(20):
        real = torch.cat([sine(hz, samples=2048) for hz in (110 + 20 * step, 400 + 30 * step)])
        loss = discriminator_loss(disc(real), disc(noise(2, 1, 2048, seed=step)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 4  # the best score that is blind to its input is 1/2 everywhere: 8 · (1/4 + 1/4)
    with torch.no_grad():
        real, fake = disc(sine(333, samples=2048)), disc(noise(1, 1, 2048, seed=99))
    gaps = torch.stack([r[-1].mean() - f[-1].mean() for r, f in zip(real, fake, strict=True)])
    assert (gaps > 0).sum() >= 7  # an unheard sine is ranked above unheard noise
    assert gaps.mean() > 0.2


# GAN terms and KL by hand


def features(*values):
    """One feature map and one score per discriminator."""
    return [[torch.tensor([m]), torch.tensor([s])] for m, s in values]


def test_gan_losses_by_hand():
    real, fake = features((1.0, 0.5), (2.0, 2.0)), features((4.0, 0.25), (0.0, -1.0))
    assert discriminator_loss(real, fake).item() == pytest.approx((0.5**2 + 0.25**2) + (1.0**2 + 1.0**2))
    assert generator_loss(fake).item() == pytest.approx(0.75**2 + 2.0**2)
    assert feature_loss(real, fake).item() == pytest.approx(3.0 + 2.0)  # the scores do not count
    assert discriminator_loss(features((0.0, 1.0)), features((0.0, 0.0))) == 0
    assert generator_loss(features((0.0, 1.0))) == 0


def test_feature_loss_moves_the_fake_only():
    real, fake = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    score = torch.zeros(1)
    feature_loss([[real, score]], [[fake, score]]).backward()
    assert real.grad is None
    assert fake.grad.item() == -1


def test_kl_is_that_of_torch_distributions_in_nats_per_frame():
    mu, logvar = noise(2, 5, 7), noise(2, 5, 7, seed=1)
    normal = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    assert torch.allclose(kl(mu, logvar), expected, rtol=1e-5)
    assert kl(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)) == 0
    assert kl(torch.full((1, 64, 2), 2.0), torch.zeros(1, 64, 2)).item() == pytest.approx(64 * 2)  # m² / 2 per channel
