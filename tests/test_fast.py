"""What makes speech fast must not change it: rows padded into one batch, blocks that compute only what is read, packed weights."""

import copy

import pytest
import torch

from vox import fast, flow
from vox.config import RopeConfig, TransformerConfig, preset
from vox.transformer import KVCache, Linear, Transformer, has_bf16
from vox.voxcpm import VoxCPM

CONFIG = TransformerConfig(layers=3, hidden=64, ffn=96, heads=4, kv_heads=2, mup=True)


@pytest.fixture
def stack():
    torch.manual_seed(0)
    return Transformer(CONFIG, causal=True).eval()


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[9, 1, 1, 1], [6, 3, 1, 2]], ids=["steps", "chunks"])
def test_padded_rows_equal_rows_alone(stack, chunks):
    """Rows of unequal length, padded in front with values that would be heard if they were seen."""
    pad = torch.tensor([0, 3, 7])
    x = torch.randn(3, sum(chunks), 64)
    padding = torch.arange(x.shape[1]) < pad[:, None]
    cache = KVCache(CONFIG, 3, x.shape[1], pad=pad)
    found = torch.cat([stack(part, cache) for part in torch.where(padding[..., None], 1e3, x).split(chunks, dim=1)], dim=1)
    assert torch.isfinite(found).all()
    for row, empty in enumerate(pad):
        alone = stack(x[row : row + 1, empty:])[0]
        torch.testing.assert_close(found[row, empty:], alone, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rows", [[1, 2], [0], [2, 0]], ids=str)
def test_keep_some_rows(stack, rows):
    pad, x = torch.tensor([0, 3, 4]), torch.randn(3, 9, 64)
    whole, part = (KVCache(CONFIG, 3, 12, pad=pad) for _ in range(2))
    stack(x, whole), stack(x, part)
    part.keep(torch.tensor(rows))
    for step in torch.randn(3, 3, 1, 64):
        torch.testing.assert_close(stack(step[rows], part), stack(step, whole)[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rope", [None, RopeConfig()], ids=["no positions", "positions"])
@pytest.mark.parametrize("read", [slice(1), slice(-2, None), slice(None)], ids=str)
def test_reading_less_changes_nothing(rope, read):
    """The values read, and every gradient."""
    torch.manual_seed(0)
    config = TransformerConfig(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, rope=rope)
    stack, x = Transformer(config, causal=False), torch.randn(3, 5, 64, requires_grad=True)
    expected, found = stack(x)[:, read], stack(x, read=read)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    wanted = [x, *stack.parameters()]
    for a, b in zip(torch.autograd.grad(found.square().sum(), wanted), torch.autograd.grad(expected.square().sum(), wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 64])
def test_few_rows(rows, bias):
    """Whatever library is chosen."""
    torch.manual_seed(0)
    linear, x = Linear(48, 32, bias=bias), torch.randn(1, rows, 48)
    torch.testing.assert_close(linear(x), torch.nn.functional.linear(x, linear.weight, linear.bias), rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16


# ------------------------------------------------------------------------------------------------- the whole model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VoxCPM(preset("nano")).eval()


@torch.no_grad()
def latents(model):
    """24 patches, each drawn after the same text and the same true patches: every box takes part. [24, P, D]"""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(25, model.config.patch, model.config.vae.latent_dim, generator=generator)
    noise = torch.randn(24, *patches.shape[1:], generator=generator)
    text = model.tslm.embed(torch.arange(105, 117)[None])
    past = model.embed(patches[:24].to(model.dtype))[None]
    x, past = torch.cat((text, past), 1), torch.cat((torch.zeros_like(text), past), 1)
    plan, residual = model.plan(x, past, torch.arange(36)[None] >= 12)
    mu = model.condition(plan, residual)[0, 11:35]
    return flow.sample(model.velocity, mu, patches[:24].to(mu), noise.to(mu), way=flow.route(10, embed=model.locdit.time)).float()


def snr(found, expected):
    """Signal-to-noise ratio in dB."""
    return 10 * torch.log10(expected.square().sum() / (found - expected).square().sum()).item()


def test_times_embedded_once(model):
    """For all steps together, or by each step for itself."""
    with torch.no_grad():
        mu, previous, noise = torch.randn(3, model.config.locdit.hidden), *torch.randn(2, 3, 4, 16)
        once = flow.sample(model.velocity, mu, previous, noise, way=flow.route(10, embed=model.locdit.time))
        torch.testing.assert_close(once, flow.sample(model.velocity, mu, previous, noise), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype, least", [(torch.float32, 90), (torch.bfloat16, 25)], ids=["fp32", "bf16"])
def test_packed_speech(model, dtype, least):
    plain = copy.deepcopy(model).to(dtype)
    if dtype == torch.bfloat16 and not has_bf16(plain.device):
        with pytest.raises(ValueError, match="speak in float32"):
            fast.pack_(plain)
        return
    expected = latents(plain)
    assert snr(latents(fast.pack_(plain)), expected) > least


def test_quantised_speech(model):
    found = snr(latents(fast.quantise_(copy.deepcopy(model))), latents(model))
    print(f"8-bit weights: latents {found:.1f} dB above their error")
    assert found > 20


@pytest.mark.parametrize("pack", [fast.pack_, fast.quantise_])
def test_packed_models_only_speak(model, pack, tmp_path):
    packed = pack(copy.deepcopy(model))
    with pytest.raises(ValueError, match="cannot be trained"):
        packed.train()
    with pytest.raises(ValueError, match="cannot be saved"):
        packed.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="cannot be moved or converted"):
        packed.to(torch.bfloat16)
    packed.to("cpu")


def test_only_on_the_cpu():
    with torch.device("meta"):
        model = VoxCPM(preset("nano"))
    with pytest.raises(ValueError, match="only a model on the CPU"):
        fast.quantise_(model)


def test_packing_twice_is_refused(model):
    """In either way and either order."""
    for first, second in ((fast.pack_, fast.quantise_), (fast.quantise_, fast.pack_)):
        packed = first(copy.deepcopy(model))
        with pytest.raises(ValueError, match="packed already"):
            second(packed)
