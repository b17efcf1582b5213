"""AudioVAE: encoder and decoder against the official ones, in five shapes and at odd lengths."""

import pytest
import reference
import torch
from reference import close, same

from vox.config import VAEConfig
from vox.vae import AudioVAE
from vox.vae_stream import DecoderStream


@pytest.fixture(params=list(reference.VAES))
def vaes(request):
    """(name, official, ours) with equal weights."""
    official = reference.vae(reference.VAES[request.param])
    settings = reference.config(vae=reference.VAES[request.param])["audio_vae_config"]
    ours = AudioVAE(VAEConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}))
    ours.load_state_dict(official.state_dict())
    return request.param, official, ours.eval()


@torch.no_grad()
@pytest.mark.parametrize("extra", [0, 1, -1, 0.37], ids=["whole", "one more", "one less", "part"])
def test_encode(vaes, extra):
    name, official, ours = vaes
    hop = official.chunk_size
    length = 3 * hop + (extra if isinstance(extra, int) else int(extra * hop))
    wav = torch.rand(2, 1, length) * 2 - 1
    z = ours.encode(wav)
    assert z.shape == (2, official.latent_dim, -(-length // hop))
    close(z, official.encode(wav, official.sample_rate), what=f"vae.encode {name}")
    padded = torch.nn.functional.pad(wav, (0, -length % hop))
    mu, logvar = ours.encode_stats(wav)
    same(mu, z, "encode is the mean of encode_stats")
    close(logvar, official.encoder(padded)["logvar"], what=f"vae.encode_stats logvar {name}")


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5])
def test_decode(vaes, frames):
    name, official, ours = vaes
    z = torch.randn(2, official.latent_dim, frames)
    torch.manual_seed(7)  # both noise blocks draw [B, 1, L] per block, in the same order
    wav = ours.decode(z)
    torch.manual_seed(7)
    reference_wav = official.decode(z)
    assert wav.shape == (2, 1, frames * official.chunk_size)
    close(wav, reference_wav, what=f"vae.decode {name}")


@pytest.mark.parametrize("sizes", [[1] * 7, [3, 4]], ids=str)
def test_decode_in_chunks(vaes, sizes, monkeypatch):
    """Chunks from the stream, and the trained modules, against the official whole; the noise is 0.5 everywhere, since order matters."""
    name, official, ours = vaes
    z = torch.randn(2, official.latent_dim, 7)
    stream = DecoderStream(ours, 2)
    monkeypatch.setattr(torch, "randn", lambda shape, **options: torch.full(shape, 0.5, **options))
    whole = official.decode(z)
    close(torch.cat([stream(chunk) for chunk in z.split(sizes, 2)], 2), whole, what=f"vae.decode in chunks {name}")
    close(ours.decode(z), whole, what=f"vae.decode with gradients {name}")


@torch.no_grad()
def test_noise_reaches_the_speech():
    """With the noise block on, another noise is another waveform: otherwise 'fixed noise' would prove nothing."""
    official = reference.vae(reference.VAES["noise"])
    z = torch.randn(1, official.latent_dim, 2)
    assert (official.decode(z) - official.decode(z)).abs().max() > 1e-3


def test_gradients(vaes):
    """Weight normalisation has its own gradient: both g and v must agree. Through some 60 layers rounding adds up to about 1e-5."""
    name, official, ours = vaes
    wav = torch.rand(1, 1, 2 * official.chunk_size) * 2 - 1
    for vae, encode in ((official, lambda w: official.encode(w, official.sample_rate)), (ours, ours.encode)):
        torch.manual_seed(7)
        vae.zero_grad()
        vae.decode(encode(wav)).square().mean().backward()
    expected = dict(official.named_parameters())
    for key, parameter in ours.named_parameters():
        if expected[key].grad is not None:  # log σ² is not on this path
            close(parameter.grad, expected[key].grad, bound=5e-5, what=f"vae gradients {name}")
