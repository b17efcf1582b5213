"""The ablation switches: each changes the loss, no two compute the same, and audio modules run at audio positions only."""

import itertools
import math
import types

import pytest
import torch

from vox import ablations, flow, official
from vox.batch import Item, pack
from vox.config import Config, FSQConfig, TransformerConfig, VAEConfig
from vox.fsq import FSQ, quantise
from vox.voxcpm import VoxCPM

HIDDEN, PATCH, DIM = 32, 2, 6
STACK = TransformerConfig(layers=2, hidden=HIDDEN, ffn=48, heads=4, kv_heads=2)
BASE = Config(
    tslm=STACK,
    ralm_layers=2,
    locenc=TransformerConfig(layers=1, hidden=16, ffn=24, heads=2, kv_heads=1),
    locdit=TransformerConfig(layers=2, hidden=24, ffn=32, heads=2, kv_heads=1),
    vae=VAEConfig(encoder_dim=2, latent_dim=DIM, decoder_dim=16),
    vocab=512,
    patch=PATCH,
    fsq=FSQConfig(dim=16),
    max_length=128,
)
SWITCHES = {
    "base": {},
    "FSQ wide": {"fsq.dim": HIDDEN},
    "FSQ narrow": {"fsq.dim": 4},
    "FSQ coarse": {"fsq.scale": 3},
    "FSQ without rounding": {"fsq": FSQConfig(kind="none", dim=HIDDEN)},  # the weights of "FSQ wide"
    "noise for rounding": {"fsq.kind": "noise"},
    "FSQ identity": {"fsq.kind": "identity"},
    "RALM without history": {"ralm": "no_history"},
    "no residual": {"ralm": "no_residual"},
    "no RALM": {"ralm": "none"},
    "no previous patch": {"previous_patch": False},
}


def build(switch: str) -> VoxCPM:
    """The model of a switch. What two models have in common has the same weights: each is drawn from its own name and shape."""
    model = VoxCPM(BASE.replace(**SWITCHES[switch])).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            seed = sum(ord(letter) * (k + 1) for k, letter in enumerate(f"{name} {tuple(parameter.shape)}"))
            scale = 1.0 if parameter.ndim == 1 else 2 / math.sqrt(parameter.shape[-1])
            parameter.copy_(scale * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
            if "norm" in name:
                parameter.abs_()
    return model


def a_batch():
    generator = torch.Generator().manual_seed(0)
    random = lambda n, m: Item(torch.randint(105, 400, (n,), generator=generator), torch.randn(m * PATCH, DIM, generator=generator))  # noqa: E731
    return pack([random(5, 6), random(3, 4)], PATCH)


@pytest.fixture(scope="module")
def passes():
    """switch → (losses, μ of every patch, predicted velocity of every patch) on one batch with one draw, nothing dropped."""
    batch, found = a_batch(), {}
    draw = flow.draw(batch.patches, PATCH, DIM, BASE.flow, torch.Generator().manual_seed(1))._replace(keep=torch.ones(batch.patches).bool())
    for switch in SWITCHES:
        model, seen = build(switch), []
        model.locdit.register_forward_hook(lambda module, args, out, seen=seen: seen.append((args[1], out)))
        with torch.no_grad():
            losses = model(batch, draw)
        found[switch] = (losses, *seen[0])
    return found


@pytest.mark.parametrize("switch", [switch for switch in SWITCHES if switch != "base"])
def test_switch_changes_the_loss(passes, switch):
    losses, base = passes[switch][0], passes["base"][0]
    assert math.isfinite(losses.total)
    assert abs(losses.total - base.total) > 1e-4 * base.total, f"{switch}: {losses.total} and without it {base.total}"


@pytest.mark.parametrize("a, b", itertools.combinations(SWITCHES, 2))
def test_no_two_are_the_same(passes, a, b):
    """On shared weights the velocity of some patch differs; and what the difference is made of is what the switch says."""
    (_, mu_a, v_a), (_, mu_b, v_b) = passes[a], passes[b]
    assert (v_a - v_b).abs().max() > 1e-3
    if "no previous patch" in (a, b) and "base" in (a, b):
        assert torch.equal(mu_a, mu_b), "hiding the previous patch does not touch the LMs"
    else:
        assert (mu_a - mu_b).abs().max() > 1e-3 or "no previous patch" in (a, b)


def test_stop_head_reads_the_plan_only(passes):
    """The stop head reads TSLM's plan: switches behind the bottleneck leave its loss alone, the bottleneck itself does not."""
    stop = {switch: losses.stop.item() for switch, (losses, _, _) in passes.items()}
    for switch in ("RALM without history", "no residual", "no previous patch"):
        assert stop[switch] == stop["base"]
    for switch in ("FSQ wide", "FSQ narrow", "FSQ coarse", "FSQ without rounding", "noise for rounding", "FSQ identity", "no RALM"):
        assert stop[switch] != stop["base"]


def test_history_is_what_no_history_drops():
    """Without E_<i, RALM still sees the plan, which carries history too; only the direct path is cut."""
    calls = []
    for switch in ("base", "RALM without history"):
        model = build(switch)
        model.ralm.register_forward_pre_hook(lambda module, args: calls.append(args))
        with torch.no_grad():
            model(a_batch())
    (plan, past, *_), (plan_cut, past_cut, *_) = calls
    assert torch.equal(plan, plan_cut)
    audio = a_batch().audio_mask
    assert past[audio].abs().min(-1).values.max() > 0 and not past[~audio].any()
    assert not past_cut.any()


@pytest.mark.parametrize("switch", list(SWITCHES))
def test_everything_learns(switch):
    """Every parameter that a switch leaves to train has a gradient, so no ablation carries dead weight unawares."""
    model = build(switch).train()
    model(a_batch()).total.backward()
    trained = [(name, parameter.grad) for name, parameter in model.named_parameters() if parameter.requires_grad]
    idle = {name for name, gradient in trained if gradient is None or not gradient.any()}
    assert not idle


def test_audio_modules_run_at_audio_positions_only():
    """LocEnc reads audio positions, LocDiT and the stop head learn at loss positions: 10 and 9 of 26, counted by hooks."""
    model, batch, rows = build("base"), a_batch(), {}
    batch.loss_mask[0, 6] = False  # one patch that is read and not learned
    for name in ("locenc", "locdit", "stop_proj", "stop_head"):
        hook = lambda module, args, name=name: rows.setdefault(name, []).append(len(args[0]))  # noqa: E731
        getattr(model, name).register_forward_pre_hook(hook)
    model(batch)
    audio, learned, positions = int(batch.audio_mask.sum()), batch.patches, batch.text.numel()
    assert (audio, learned, positions) == (10, 9, 26)
    assert rows == {"locenc": [audio], "locdit": [learned], "stop_proj": [learned], "stop_head": [learned]}


@torch.no_grad()
def test_noise_is_as_strong_as_the_error_of_rounding():
    """In training only, of the same power as what rounding does to values spread evenly, and centred on the mean."""
    torch.manual_seed(0)
    for scale in (1, 9):
        rounding, noise = (FSQ(64, FSQConfig(kind=kind, dim=16, scale=scale)) for kind in ("fsq", "noise"))
        z = torch.rand(100_000) * 2 - 1
        error = (quantise(z, scale) - z).std()
        h = torch.randn(2000, 64)
        mean = torch.tanh(noise.in_proj(h))
        drawn = noise.train().codes(h) - mean
        assert drawn.std() == pytest.approx(error.item(), rel=0.02) and abs(drawn.mean()) < 0.02 * error
        assert torch.equal(noise.eval().codes(h), mean)
        assert noise(h).shape == rounding(h).shape and noise.state_dict().keys() == rounding.state_dict().keys()


def test_a_loss_is_taken_where_the_model_is():
    """`fit` leaves it on a GPU, if there is one; the sentences are on the CPU."""

    class Elsewhere:
        config, device = BASE, "meta"

        def __call__(self, batch, draw):
            assert {value.device.type for value in vars(batch).values()} == {"meta"}
            return types.SimpleNamespace(diffusion=torch.tensor(0.25))

    assert ablations.loss(Elsewhere(), [Item(torch.tensor([110, 111]), torch.zeros(3 * PATCH, DIM))], time=0.7) == 0.25


def test_noise_lets_the_gradient_pass():
    """Unlike rounding it needs no detour: the gradient of z + noise is that of z."""
    bottleneck = FSQ(32, FSQConfig(kind="noise", dim=8)).train()
    h = torch.randn(4, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(bottleneck(h).sum(), h)
    (plain,) = torch.autograd.grad(bottleneck.eval()(h).sum(), h)
    assert torch.equal(gradient, plain) and gradient.abs().min() > 0


def test_a_noise_bottleneck_is_stored_with_a_warning(tmp_path):
    """vox reads it back as it is; the released layout has no word for it, so the official package would round."""
    model = VoxCPM(BASE.replace(**{"fsq.kind": "noise"})).eval()
    with pytest.warns(UserWarning, match="noise"):
        model.save(tmp_path)
    again = official.load(tmp_path, device="cpu", dtype="float32")
    assert again.config.fsq.kind == "noise" and torch.equal(again.fsq.in_proj.weight, model.fsq.in_proj.weight)
