"""The streaming decoder: any chunks, any rows and any variant give what `vae.decode` gives, from weights folded once."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

from vox import vae_stream
from vox.config import VAEConfig
from vox.vae import AudioVAE
from vox.vae_stream import DecoderStream, fold

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
    """A random VAE in which no bias, gain or α has its initial value, and calm: sines of large numbers would blow rounding up."""
    torch.manual_seed(seed)
    vae = AudioVAE(CONFIGS[name])
    with torch.no_grad():
        for key, weight in vae.named_parameters():
            if key.endswith(("alpha", "weight_g")):
                weight.mul_(0.5 + 0.6 * torch.rand_like(weight))
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


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("sizes", [[1] * 9, [2, 2, 2, 2, 1], [9], [1, 7, 1], [5, 4]], ids=str)
def test_chunks_join_to_the_whole(name, sizes, monkeypatch):
    vae = make(name)
    z = torch.rand(3, vae.config.latent_dim, 9) - 0.5
    monkeypatch.setattr(torch, "randn", lambda shape, **options: torch.full(shape, 0.2, **options))  # chunks draw in another order
    wav = in_chunks(DecoderStream(vae, 3), z, sizes)
    assert difference(wav, decode(vae, z)) <= 1e-5
    assert difference(wav, DecoderStream(vae, 3)(z)) <= 1e-6
    vae, z = vae.double(), z.double()  # where rounding hides nothing
    wav = in_chunks(DecoderStream(vae, 3), z, sizes)
    assert difference(wav, DecoderStream(vae, 3)(z)) <= 1e-13
    assert difference(wav, decode(vae, z)) <= 1e-7  # what is left is the 1e-9 that Snake adds to α


@pytest.mark.parametrize("name", ["depthwise", "dense"])
def test_rows_go_on_alone(name):
    """Sentences that end leave the batch; the others do not notice, whatever their new order."""
    vae = make(name)
    z = torch.rand(4, vae.config.latent_dim, 8) - 0.5
    stream, whole = DecoderStream(vae, 4), decode(vae, z)
    parts = [stream(z[..., :3])]
    stream.keep(torch.tensor([2, 0]))
    parts.append(stream(z[[2, 0], :, 3:6]))
    stream.keep(torch.tensor([True, False]))
    parts.append(stream(z[[2], :, 6:]))
    assert difference(torch.cat([part[:1] if i else part[2:3] for i, part in enumerate(parts)], 2), whole[[2]]) <= 1e-5
    assert difference(torch.cat([parts[0][:1], parts[1][1:]], 2), whole[:1, :, : parts[0].shape[2] + parts[1].shape[2]]) <= 1e-5


def test_streams_do_not_disturb_each_other():
    vae = make("depthwise")
    z = torch.rand(2, 1, vae.config.latent_dim, 4) - 0.5
    streams = DecoderStream(vae), DecoderStream(vae)
    parts = [[stream(x[..., i : i + 1]) for stream, x in zip(streams, z, strict=True)] for i in range(4)]
    for row in range(2):
        assert difference(torch.cat([part[row] for part in parts], 2), decode(vae, z[row])) <= 1e-5


def test_decode_without_gradients_is_the_stream(monkeypatch):
    vae = make("depthwise")
    z = torch.rand(2, vae.config.latent_dim, 9) - 0.5
    monkeypatch.setattr(vae_stream, "CHUNK", 4)  # long inputs pass in pieces
    with torch.no_grad():
        wav = vae.decode(z)
    assert torch.equal(wav, in_chunks(DecoderStream(vae, 2), z, [4, 4, 1]))
    assert difference(wav, vae.decode(z).detach()) <= 1e-5
    assert vae.decode(z).requires_grad and not wav.requires_grad


def test_equal_seeds_give_equal_noise():
    """A chunk draws what the trained modules draw, ε [B, 1, L] in every block, and the next chunk draws anew."""
    vae = make("noise")
    z = torch.rand(2, vae.config.latent_dim, 3) - 0.5
    stream = DecoderStream(vae, 2)
    torch.manual_seed(1)
    wav = stream(z)
    torch.manual_seed(1)
    assert difference(wav, decode(vae, z)) <= 1e-5
    assert difference(DecoderStream(vae, 2)(z), wav) > 1e-3


def test_the_smallest_alpha_is_harmless():
    """x + sin²(αx)/α is x where α is 0."""
    vae = make("depthwise")
    with torch.no_grad():
        for key, weight in vae.named_parameters():
            if key.endswith("alpha"):
                weight[:, ::2] = 0
                weight[:, 1::4].neg_()
    z = torch.rand(1, vae.config.latent_dim, 3) - 0.5
    assert difference(DecoderStream(vae)(z), decode(vae, z)) <= 1e-5


def step(vae, fused=False):
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-2, fused=fused)
    vae.decode(torch.ones(1, vae.config.latent_dim, 2)).square().mean().backward()
    optimizer.step()


CHANGES = {
    "a training step": step,
    "a fused training step": lambda vae: step(vae, fused=True),
    "rescale_": lambda vae: vae.rescale_(torch.linspace(0.5, 2, vae.config.latent_dim)),
    "load_state_dict": lambda vae: vae.load_state_dict(make("depthwise", seed=1).state_dict()),
    "load_state_dict, assigned": lambda vae: vae.load_state_dict(make("depthwise", seed=1).state_dict(), assign=True),
    "another type": lambda vae: vae.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_follow_every_change(change):
    vae = make("depthwise")
    z = torch.rand(1, vae.config.latent_dim, 3) - 0.5
    before, layers = DecoderStream(vae)(z), fold(vae)
    assert fold(vae) is layers, "nothing changed, and yet the weights were folded again"
    CHANGES[change](vae)
    z = z.to(next(vae.parameters()).dtype)
    after = DecoderStream(vae)(z)
    assert fold(vae) is not layers
    assert difference(after, decode(vae, z)) <= 1e-5
    assert change == "another type" or difference(after, before) > 1e-3


def test_a_stream_keeps_the_weights_it_began_with():
    vae = make("depthwise")
    z = torch.rand(1, vae.config.latent_dim, 4) - 0.5
    stream, whole = DecoderStream(vae), decode(vae, z)
    first = stream(z[..., :2])
    step(vae)
    assert difference(torch.cat((first, stream(z[..., 2:])), 2), whole) <= 1e-5


def test_copies_and_files_hold_no_folded_weights():
    vae = make("depthwise")
    z, keys, size = torch.ones(1, vae.config.latent_dim, 2), set(vae.state_dict()), len(pickle.dumps(vae))
    DecoderStream(vae)(z)
    assert set(vae.state_dict()) == keys
    assert len(pickle.dumps(vae)) == size
    twin = copy.deepcopy(vae)
    step(twin)
    assert difference(DecoderStream(twin)(z), decode(twin, z)) <= 1e-5
    assert difference(DecoderStream(vae)(z), decode(vae, z)) <= 1e-5


def test_folded_weights_go_with_the_vae():
    vae = make("depthwise")
    layers = weakref.ref(fold(vae)[-1])
    assert layers() is not None
    del vae
    gc.collect()
    assert layers() is None


def test_memory_stays_flat():
    vae = make("depthwise")
    stream, z = DecoderStream(vae), torch.ones(1, vae.config.latent_dim, 1)
    sizes, pointers = [], []
    for _ in range(300):
        stream(z)
        sizes.append(sum(past.untyped_storage().nbytes() for past in stream.pasts))
        pointers.append([past.data_ptr() for past in stream.pasts])
    assert set(sizes) == {sizes[0]} and all(p == pointers[0] for p in pointers)
    assert all(past.untyped_storage().nbytes() == past.nbytes for past in stream.pasts), "the state is a view of something larger"


def test_inference_mode_inside_and_outside():
    with torch.inference_mode():
        vae = make("depthwise")  # weights without versions: folded anew for every stream
        z = torch.rand(1, vae.config.latent_dim, 4) - 0.5
        whole, stream = vae.decoder(z), DecoderStream(vae)
        parts = [stream(z[..., :2])]
    parts.append(stream(z[..., 2:]))
    assert difference(torch.cat(parts, 2), whole) <= 1e-5
    with torch.inference_mode():
        for weight in vae.parameters():
            weight.mul_(1.1)
        assert difference(DecoderStream(vae)(z), vae.decoder(z)) <= 1e-5


def test_autocast_leaves_the_decoder_alone():
    vae = make("depthwise")
    z = torch.rand(1, vae.config.latent_dim, 4) - 0.5
    with torch.autocast("cpu", torch.bfloat16):
        wav = DecoderStream(vae)(z)
    assert torch.equal(wav, DecoderStream(vae)(z))


@pytest.mark.parametrize("shape", [(1, 6, 2), (2, 5, 2), (2, 6, 0), (2, 6)], ids=str)
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"latents of shape \[2, 6, L\] with L ≥ 1"):
        DecoderStream(make("depthwise"), 2)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 5, 2), (2, 6, 0), (2, 6)], ids=str)
def test_decode_refuses_wrong_shapes(shape):
    with pytest.raises(ValueError, match=r"latents of shape \[B, 6, L\] with L > 0"):
        make("depthwise").decode(torch.zeros(shape))
