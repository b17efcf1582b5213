"""The streaming decoder: any chunks, any rows and any variant give what `vae.decode` gives, from weights folded once."""


import pytest
import torch

from vox.config import VAEConfig
from vox.vae import AudioVAE
from vox.vae_stream import DecoderStream

SMALL = {"encoder_dim": 4, "latent_dim": 6, "decoder_dim": 32}
CONFIGS = {
    "depthwise": VAEConfig(**SMALL),
    "dense": VAEConfig(**SMALL | {"depthwise": False, "encoder_rates": (2, 4), "decoder_rates": (4, 2)}),
    "noise": VAEConfig(**SMALL | {"use_noise_block": True}),
    "five rates": VAEConfig(**SMALL | {"decoder_dim": 64, "encoder_rates": (2, 3, 6, 7), "decoder_rates": (7, 6, 3, 2)}),
    "odd": VAEConfig(encoder_dim=4, latent_dim=5, decoder_dim=12, encoder_rates=(3, 5), decoder_rates=(5, 3), depthwise=False),
    "rate 1": VAEConfig(encoder_dim=4, latent_dim=5, decoder_dim=12, encoder_rates=(1, 3), decoder_rates=(3, 1)),
}


def make(name: str, seed: int = 0) -> AudioVAE:
    """A random VAE in which no bias, gain or α has its initial value."""
    torch.manual_seed(seed)
    vae = AudioVAE(CONFIGS[name])
    with torch.no_grad():
        for key, weight in vae.named_parameters():
            if key.endswith(("alpha", "weight_g")):
                weight.mul_(0.6 + 0.8 * torch.rand_like(weight))
            elif key.endswith("bias"):
                weight.copy_(0.4 * torch.rand_like(weight) - 0.2)
    return vae


def decode(vae, z):
    """The trained modules' own decode, z [B, D, L] → [B, 1, L·hop]"""
    return vae.decoder(z).detach()


def difference(a, b) -> float:
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


def in_chunks(stream, z, sizes):
    return torch.cat([stream(chunk) for chunk in z.split(sizes, 2)], 2)


@pytest.fixture
def constant_noise(monkeypatch):
    """ε drawn as 0.7 everywhere, so that chunks need not draw in the order of the whole."""
    monkeypatch.setattr(torch, "randn", lambda shape, **options: torch.full(shape, 0.7, **options))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sizes", [[1] * 9, [2, 2, 2, 2, 1], [9], [1, 7, 1], [5, 4]], ids=str)
def test_chunks_join_to_the_whole(name, sizes, constant_noise):
    vae = make(name)
    z = torch.rand(3, vae.config.latent_dim, 9) - 0.5
    assert difference(in_chunks(DecoderStream(vae, 3), z, sizes), decode(vae, z)) <= 1e-5
    vae, z = vae.double(), z.double()  # where rounding hides nothing; what is left is the 1e-9 that Snake adds to α
    assert difference(in_chunks(DecoderStream(vae, 3), z, sizes), decode(vae, z)) <= 1e-7
