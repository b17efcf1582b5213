"""Generation: the KV cache changes nothing, seeds reproduce, speech ends, a prompt is continued, bad input is named."""

import math

import pytest
import soundfile
import torch

from vox import flow, generate
from vox.audio import Speech
from vox.batch import Item, pack
from vox.config import Config, FSQConfig, TransformerConfig, VAEConfig
from vox.prompts import prompt_patches
from vox.text import AUDIO_START, CharTokenizer
from vox.voxcpm import VoxCPM

PATCH, DIM, HOP = 2, 6, 12
STACK = TransformerConfig(layers=2, hidden=32, ffn=48, heads=4, kv_heads=2)
BASE = Config(
    tslm=STACK,
    ralm_layers=2,
    locenc=TransformerConfig(layers=1, hidden=16, ffn=24, heads=2, kv_heads=1),
    locdit=TransformerConfig(layers=2, hidden=24, ffn=32, heads=2, kv_heads=1),
    vae=VAEConfig(encoder_dim=2, encoder_rates=(3, 4), latent_dim=DIM, decoder_dim=16, decoder_rates=(4, 3), sample_rate=8000),
    vocab=512,
    patch=PATCH,
    fsq=FSQConfig(dim=8),
    max_length=128,
)
SWITCHES = {
    "base": {},
    "mup": {"tslm.mup": True},
    "no positions": {"tslm.rope": None},
    "FSQ without rounding": {"fsq": FSQConfig(kind="none", dim=32)},
    "noise for rounding": {"fsq.kind": "noise"},
    "FSQ identity": {"fsq.kind": "identity"},
    "RALM without history": {"ralm": "no_history"},
    "no residual": {"ralm": "no_residual"},
    "no RALM": {"ralm": "none"},
    "no previous patch": {"previous_patch": False},
}


def build(changes=(), seed=0, stop=None) -> VoxCPM:
    """A random model; stop: True or False makes the stop head say so at every patch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VoxCPM(BASE.replace(**dict(changes))).eval()
    if stop is not None:
        with torch.no_grad():
            model.stop_proj.weight.zero_()
            model.stop_proj.bias.fill_(1.0)
            model.stop_head.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 32) * (1 if stop else -1))
    return model


@pytest.fixture(scope="module")
def model():
    return build(stop=False)


@pytest.fixture
def prompt():
    """A voice of 5.5 patches."""
    return torch.rand(int(5.5 * PATCH * HOP), generator=torch.Generator().manual_seed(1)) - 0.5


def figure(a, b) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def draw(model, tokens, prompt=None, cap=50, seed=0, **options) -> generate.Line:
    """One line, drawn to its end."""
    line = generate.Line(tokens, prompt, cap, torch.Generator().manual_seed(seed))
    for _ in generate.draw_patches(model, [line], **options):
        pass
    return line


# ---------------------------------------------------------------------------------------------------------- the KV cache


@torch.no_grad()
@pytest.mark.parametrize("prompt_length", [0, 4])
@pytest.mark.parametrize("switch", list(SWITCHES))
def test_cache_equals_recomputation(switch, prompt_length):
    """Every patch again from scratch, without a cache: both LMs over the whole sequence in one pass, and the same noise."""
    model, steps = build(SWITCHES[switch]), 8
    tokens = torch.arange(105, 112)
    before = torch.randn(prompt_length, PATCH, DIM, generator=torch.Generator().manual_seed(2))
    line = draw(model, tokens, before if prompt_length else None, cap=steps, seed=3, min_patches=steps)
    drawn = torch.stack(line.patches)
    assert len(drawn) == steps and line.ended_by == "cap"

    patches, noises = torch.cat((before, drawn)), torch.Generator().manual_seed(3)
    text = model.tslm.embed(torch.cat((tokens, torch.tensor([AUDIO_START])))[None])
    for k in range(steps):
        seen = patches[: prompt_length + k]
        embedded = model.embed(seen)[None]
        x, past = torch.cat((text, embedded), 1), torch.cat((torch.zeros_like(text), embedded), 1)
        audio = torch.cat((torch.zeros(1, text.shape[1]), torch.ones(1, len(seen))), 1).bool()
        assert_far_from_boundaries(model, model.tslm(x)[audio])
        plan, residual = model.plan(x, past, audio)
        mu = model.condition(plan[:, -1], None if residual is None else residual[:, -1])
        previous = seen[-1:] if len(seen) else torch.zeros(1, PATCH, DIM)
        noise = torch.randn(1, DIM, PATCH, generator=noises).mT
        patch = flow.sample(model.velocity, mu, previous, noise, steps=10, cfg=2.0)[0]
        assert figure(drawn[k], patch) <= 1e-5, f"patch {k}"


def assert_far_from_boundaries(model, states):
    """No value where a rounding error could flip its level: the comparison would then say nothing."""
    if model.fsq is not None and model.fsq.config.kind == "fsq" and len(states):
        z = torch.tanh(model.fsq.in_proj(states)) * model.fsq.config.scale
        assert (z - z.floor() - 0.5).abs().min() > 5e-5, "choose another seed"


@torch.no_grad()
def test_first_patch_reads_the_raw_state():
    """Without a prompt the first patch is planned by the state at token 101, which has not been through FSQ."""
    model, calls = build(), []
    model.fsq.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape))
    plans = []
    model.lm_to_dit_proj.register_forward_pre_hook(lambda module, args: plans.append(args[0]))
    draw(model, torch.arange(105, 109), cap=2)
    raw = model.tslm(model.tslm.embed(torch.tensor([[105, 106, 107, 108, AUDIO_START]])))[:, -1]
    assert figure(plans[0], raw) < 1e-6
    assert figure(plans[1], model.fsq(raw)) > 1e-3, "the second patch is planned by another state"


# ----------------------------------------------------------------------------------------------------------------- seeds


def test_seeds(model):
    a, b, c = (model.generate("one", seed=seed, max_seconds=0.05) for seed in (4, 4, 5))
    assert torch.equal(a.wav, b.wav) and torch.equal(a.latents, b.latents), "a seed is a speech"
    assert figure(c.wav, a.wav) > 1e-3, "another seed is another"
    assert figure(model.generate("one", max_seconds=0.05).wav, model.generate("one", max_seconds=0.05).wav) > 1e-3, "no seed is a new one"


def test_global_random_state_is_left_alone(model):
    before = torch.get_rng_state()
    model.generate("one", seed=4, max_seconds=0.01)
    model.generate("one", max_seconds=0.01)
    assert torch.equal(torch.get_rng_state(), before)


def test_options_matter(model):
    base = model.generate("one", seed=4, max_seconds=0.02).latents
    for option in (dict(cfg=3.0), dict(steps=20), dict(temperature=0.5), dict(sway=0.0), dict(zero_star=False)):
        assert figure(model.generate("one", seed=4, max_seconds=0.02, **option).latents, base) > 1e-3, option
    still = [model.generate("one", seed=seed, max_seconds=0.02, temperature=0.0).latents for seed in (1, 2)]
    assert torch.equal(*still), "without temperature there is nothing to draw"
    assert figure(model.generate("two", seed=4, max_seconds=0.02).latents, base) > 1e-3, "another text is another speech"


def test_list_of_texts(model):
    texts = ["one", "two hundred", "三"]
    many = model.generate(texts, seed=7, max_seconds=0.02)
    assert [speech.text for speech in many] == texts
    for k, speech in enumerate(many):
        alone = model.generate(texts[k], seed=7 + k, max_seconds=0.02)
        assert figure(speech.wav, alone.wav) <= 1e-5
    assert model.generate([]) == []


# ------------------------------------------------------------------------------------------------------------------- end


def test_cap(model):
    """A stop head that never fires: 6 patches per token and 10 more, or what max_seconds allows."""
    speech = model.generate("one", seed=0, attempts=1)
    tokens = len(model.tokenizer.encode("one"))
    assert speech.stats["patches"] == 6 * tokens + 10 and speech.stats["ended_by"] == "cap"
    assert len(speech.stats["stop"]) == speech.stats["patches"] and max(speech.stats["stop"]) < 0.5
    patch_seconds = PATCH * HOP / 8000
    assert model.config.patch_seconds() == patch_seconds
    short = model.generate("one", seed=0, max_seconds=4.5 * patch_seconds)
    assert short.stats["patches"] == 5
    assert torch.equal(short.latents, speech.latents[: 5 * PATCH]), "the cap cuts, it changes nothing before"


def test_stop():
    """A stop head that always fires is heard from the fourth patch on, as in the released code."""
    speech = build(stop=True).generate("one", seed=0)
    assert speech.stats["patches"] == 4 and speech.stats["ended_by"] == "stop"
    assert min(speech.stats["stop"]) > 0.5


def test_max_length_is_a_cap_too(model):
    """Text and patches fit the positions the model was built for."""
    text = "one " * 25
    n = len(model.tokenizer.encode(text))
    speech = model.generate(text, seed=0, attempts=1)
    assert speech.stats["patches"] == BASE.max_length - n - 1 < 6 * n + 10
    with pytest.raises(ValueError, match="128"):
        model.generate("one " * 60)


# ---------------------------------------------------------------------------------------------------------------- prompt


@torch.no_grad()
def test_prompt_continuation(model, prompt):
    """Only new speech comes back: the prompt conditions the model and warms the decoder, and is then cut off."""
    speech = model.generate("two", prompt, "one", seed=0, max_seconds=0.02)
    assert len(speech.wav) == speech.stats["patches"] * PATCH * HOP
    assert len(speech.latents) == speech.stats["patches"] * PATCH

    # zeros fill the prompt on the left, so that its speech ends a patch
    padded = torch.cat((torch.zeros(PATCH * HOP // 2), prompt))
    patches = model.vae.encode(padded[None, None])[0].mT.reshape(6, PATCH, DIM)
    assert figure(prompt_patches(model, prompt), patches) < 1e-6

    # the last two prompt patches warm the decoder up
    context = patches[-2:].flatten(0, 1)
    whole = model.vae.decode(torch.cat((context, speech.latents)).mT[None])[0, 0]
    assert figure(speech.wav, whole[2 * PATCH * HOP :]) <= 1e-5
    cold = model.vae.decode(speech.latents.mT[None])[0, 0]
    assert figure(speech.wav[: PATCH * HOP], cold[: PATCH * HOP]) > 1e-3, "without them the start sounds different"


def test_prompt_conditions(model, prompt):
    base = model.generate("two", prompt, "one", seed=0, max_seconds=0.02).latents
    assert figure(model.generate("two", seed=0, max_seconds=0.02).latents, base) > 1e-3, "the voice matters"
    assert figure(model.generate("two", -prompt, "one", seed=0, max_seconds=0.02).latents, base) > 1e-3
    assert figure(model.generate("two", prompt, "three", seed=0, max_seconds=0.02).latents, base) > 1e-3, "its words matter"


def test_prompt_from_file_and_from_speech(model, prompt, tmp_path):
    """A file at another rate, in stereo, and a Speech are taken as they are."""
    base = model.generate("two", prompt, "one", seed=0, max_seconds=0.02)
    soundfile.write(tmp_path / "me.wav", prompt.numpy(), 8000, subtype="FLOAT")
    from_file = model.generate("two", tmp_path / "me.wav", "one", seed=0, max_seconds=0.02)
    assert figure(from_file.wav, base.wav) <= 1e-5
    from_speech = model.generate("two", Speech(prompt, 8000, "one", None, {}), "one", seed=0, max_seconds=0.02)
    assert figure(from_speech.wav, base.wav) <= 1e-5
    soundfile.write(tmp_path / "stereo.wav", torch.stack((prompt, prompt), 1).numpy(), 16000, subtype="FLOAT")
    other_rate = model.generate("two", str(tmp_path / "stereo.wav"), "one", seed=0, max_seconds=0.02)
    assert other_rate.stats["patches"] == base.stats["patches"]


# ------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(text=""), "empty"),
        (dict(text="   "), "empty"),
        (dict(text="☃"), "☃"),
        (dict(text=12), "string"),
        (dict(text=["one", None]), "string"),
        (dict(text="two", prompt_wav=torch.ones(100)), "prompt_text"),
        (dict(text="two", prompt_text="one"), "prompt_wav"),
        (dict(text="two", prompt_text="one", prompt_wav=torch.zeros(200)), "silent"),
        (dict(text="two", prompt_text="one", prompt_wav=torch.ones(10)), "at least one patch"),
        (dict(text="two", prompt_text="one", prompt_wav=torch.full((200,), float("nan"))), "finite"),
        (dict(text="two", prompt_text="one", prompt_wav=torch.ones(1, 200)), r"\[N\]"),
        (dict(text="two", prompt_text="", prompt_wav=torch.ones(200)), "prompt_text"),
        (dict(text="two", prompt_text="one", prompt_wav="no such file.wav"), "no such file.wav"),
        (dict(text="two", prompt_text="one", prompt_wav=torch.rand(128 * PATCH * HOP)), "128 positions"),
        (dict(text="one", steps=0), "steps"),
        (dict(text="one", attempts=0), "attempts"),
        (dict(text="one", temperature=-1.0), "temperature"),
        (dict(text="one", cfg=float("nan")), "cfg"),
        (dict(text="one", sway=-1.1), "sway"),
        (dict(text="one", sway=1.8), "sway"),
        (dict(text="one", sway=float("nan")), "sway"),
        (dict(text=["one", "two"], prompt_wav=[torch.ones(200)], prompt_text=["one"]), "lists of 2"),
        (dict(text=["one", "two"], prompt_wav=torch.ones(200), prompt_text=["one", "one"]), "lists of 2"),
        (dict(text=["one", "two"], prompt_wav=[torch.ones(200), None], prompt_text=["one", "two"]), "prompt_wav"),
        (dict(text="one", max_seconds=0.0), "max_seconds"),
        (dict(text="one", max_seconds=-1), "max_seconds"),
    ],
)
def test_bad_input(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**arguments)


def test_a_tokenizer_too_large_for_the_model():
    tokenizer = CharTokenizer.learn(["four hundred and four"], vocab=514)
    with pytest.raises(ValueError, match="514 ids and config.vocab is 512: set vocab to 514"):
        VoxCPM(BASE, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="512 ids and config.vocab is 256"):
        VoxCPM(BASE.replace(vocab=256))


# ------------------------------------------------------------------------------------------------------------ side effects


def test_training_goes_on_after_speaking(prompt):
    """Speech in the middle of training: the mode is restored, and what was cached while speaking serves the next step."""
    model = build().train()
    speech = model.generate("one", prompt, "two", seed=0, max_seconds=0.02)
    assert model.training
    with pytest.raises(ValueError):
        model.generate("")
    assert model.training, "also after an error"
    batch = pack([Item(torch.arange(105, 109), speech.latents)], PATCH)
    model(batch).total.backward()
    weight = torch.ones(1, requires_grad=True)
    (speech.wav * weight).sum().backward()


def test_training_goes_on_after_inference_mode():
    """Position tables are cached on first use: made in inference mode, they must still serve a training step."""
    model, batch = build().train(), pack([Item(torch.arange(105, 109), torch.randn(6, DIM))], PATCH)
    with torch.inference_mode():
        model(batch)
    model(batch).total.backward()


def test_a_converted_vae_is_named():
    model = build(stop=False).bfloat16()
    for speak in (model.generate, model.stream):
        with pytest.raises(ValueError, match=r"bfloat16: call model.vae.float\(\)"):
            speak("one")
    model.vae.float()
    assert model.generate("one", seed=0, max_seconds=0.02).wav.isfinite().all()


def test_speech_is_plain_float32():
    """A bfloat16 model speaks float32: the VAE never leaves it."""
    model = build(stop=False)
    for name, module in model.named_children():
        if name != "vae":
            module.to(torch.bfloat16)
    speech = model.generate("one", seed=0, max_seconds=0.02)
    assert speech.wav.dtype == speech.latents.dtype == torch.float32
    assert speech.wav.isfinite().all() and speech.sample_rate == 8000 and speech.wav.abs().max() <= 1
    assert math.isclose(speech.seconds, len(speech.wav) / 8000)
    assert speech.stats["rtf"] > 0 and speech.stats["seconds_lm_dit"] > 0 and speech.stats["seconds_vae"] > 0
