"""AudioVAE: the hand-written passes of its two busiest layers equal plain torch, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from vox.config import VAEConfig, preset
from vox.vae import AudioVAE, CausalConv, DepthwiseConv, SineSquared, Snake


@pytest.mark.parametrize("dilation", [1, 3, 9])
@pytest.mark.parametrize("length", [1, 8, 60])
def test_depthwise(dilation, length):
    """Clips shorter than the filter's past, too."""
    conv = CausalConv(4, 4, 7, dilation=dilation, groups=4).double()
    torch.nn.init.normal_(conv.bias)
    x = torch.randn(2, 4, length, dtype=torch.double, requires_grad=True)
    expected = F.conv1d(F.pad(x, (6 * dilation, 0)), conv.weight(), conv.bias, dilation=dilation, groups=4)
    torch.testing.assert_close(conv(x), expected)
    inputs = x, conv.weight()[:, 0].detach().requires_grad_(), conv.bias[:, None].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda *inputs: DepthwiseConv.apply(*inputs, dilation), inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_one_by_one(bias):
    conv = CausalConv(4, 6, 1, bias=bias)
    x = torch.randn(3, 4, 5)
    torch.testing.assert_close(conv(x), F.conv1d(x, conv.weight(), conv.bias))


def test_snake():
    snake = Snake(3).double()
    torch.nn.init.uniform_(snake.alpha, 0.2, 3.0)
    x = torch.randn(2, 3, 10, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(snake(x), x + torch.sin(snake.alpha * x).square() / snake.alpha)
    assert torch.autograd.gradcheck(SineSquared.apply, (x, snake.alpha))


@pytest.mark.parametrize("depthwise", [True, False])
def test_channels_that_stand_still_can_be_left_out(depthwise):
    """With them at their means the speech is the same, and the latents that stay are the same."""
    torch.manual_seed(0)
    vae = AudioVAE(VAEConfig(encoder_dim=4, latent_dim=6, decoder_dim=32, depthwise=depthwise)).eval()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    channels, means = torch.tensor([True, False, True, True, False, False]), torch.randn(6)
    slim = vae.keep(channels, means)
    assert slim.config.latent_dim == 3
    wav = torch.rand(2, 1, 6400) - 0.5
    with torch.no_grad():
        for whole, part in zip(vae.encode_stats(wav), slim.encode_stats(wav), strict=True):
            torch.testing.assert_close(part, whole[:, channels])
        z = torch.where(channels[:, None], torch.randn(2, 6, 20), means[:, None])
        late = 9 * vae.config.hop  # the first frames see the silence before them, not the means
        torch.testing.assert_close(slim.decode(z[:, channels])[..., late:], vae.decode(z)[..., late:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("depthwise", [True, False])
def test_more_channels_change_nothing_until_they_are_trained(depthwise):
    torch.manual_seed(0)
    vae = AudioVAE(VAEConfig(encoder_dim=4, latent_dim=3, decoder_dim=32, depthwise=depthwise))
    wide = vae.widen(5)
    assert wide.config.latent_dim == 5
    wav, more = torch.rand(2, 1, 6400) - 0.5, torch.randn(2, 5, 20)
    for few, many in zip(vae.encode_stats(wav), wide.encode_stats(wav), strict=True):
        torch.testing.assert_close(many[:, :3], few)
    torch.testing.assert_close(wide.decode(more), vae.decode(more[:, :3]))
    wide.decode(wide.encode(wav)).square().sum().backward()
    mixer = wide.decoder.model[1 if depthwise else 0].weight_v
    assert (mixer.grad[:, 3:].abs().sum(1) > 0).all()  # and training can reach them
    with pytest.raises(ValueError, match="has 3 latent channels, more than 2"):
        vae.widen(2)


def test_reach_is_how_far_back_a_latent_hears():
    vae = AudioVAE(preset("tiny").vae).double()
    wav = torch.randn(1, 1, 20 * 640, dtype=torch.double, generator=torch.Generator().manual_seed(0)) / 10
    first = 18 * 640 - vae.reach()  # the first sample that latent 18 hears
    for sample, hears in ((first - 1, False), (first, True)):
        other = wav.clone()
        other[..., sample] += 1
        change = (vae.encode(other) - vae.encode(wav))[0, :, 18].abs().max()
        assert (change > 0) == hears, (sample, change)
