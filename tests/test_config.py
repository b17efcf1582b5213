"""Configs go to JSON and back, refuse what they do not know, and change by dotted names."""

import dataclasses
import json

import pytest

from vox import layout
from vox.config import (
    PRESETS,
    Config,
    FSQConfig,
    RopeConfig,
    TrainConfig,
    TransformerConfig,
    VAEConfig,
    VAETrainConfig,
    from_dict,
    preset,
    to_dict,
)

SMALL = dict(layers=2, hidden=32, ffn=64, heads=4, kv_heads=2)


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    config = preset(name)
    assert from_dict(Config, to_dict(config)) == config
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config
    assert isinstance(to_dict(config)["vae"]["encoder_rates"], list)


def test_round_trip_of_every_kind_of_value():
    """None, tuples, nested configs and values away from their defaults survive."""
    rope = RopeConfig(theta=500.0, short_factor=(1.0, 2.0, 3.0, 4.0), long_factor=(4.0, 3.0, 2.0, 1.0), max_position=65536)
    config = preset("nano").replace(
        tslm=TransformerConfig(**SMALL, rope=rope, mup=True),
        ralm="no_history",
        **{"locenc.rope": None, "locdit.head_dim": 16, "vae_train.adversarial_from": 3},
    )
    loaded = from_dict(Config, json.loads(json.dumps(to_dict(config))))
    assert loaded == config and loaded.tslm.rope == rope and loaded.locenc.rope is None and loaded.locdit.width == 16


@pytest.mark.parametrize("where", [(), ("vae",), ("tslm", "rope"), ("train",)])
def test_unknown_key_is_refused(where, tmp_path):
    tree = to_dict(preset("nano"))
    node = tree
    for key in where:
        node = node[key]
    node["layerz"] = 1
    with pytest.raises(ValueError, match="layerz"):
        from_dict(Config, tree)
    (tmp_path / "config.json").write_text(json.dumps({"vox": tree}), encoding="utf-8")
    with pytest.raises(ValueError, match="config.json.*layerz"):
        layout.read_config(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"vox": {}}', '{"vox": 3}', '{"vox": {"tslm": 3}}'])
def test_a_file_that_is_no_config_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="config.json"):
        layout.read_config(tmp_path)


def test_replace_reaches_inside_and_leaves_the_original():
    config = preset("nano")
    changed = config.replace(**{"fsq.dim": 16, "ralm": "none", "train.steps": 7, "tslm.rope.theta": 3.0})
    assert (changed.fsq.dim, changed.ralm, changed.train.steps, changed.tslm.rope.theta) == (16, "none", 7, 3.0)
    assert config == preset("nano") and changed.replace(**{"fsq.dim": config.fsq.dim}).fsq == config.fsq
    assert config.replace(fsq=FSQConfig(dim=5)).fsq == FSQConfig(dim=5)


@pytest.mark.parametrize("name", ["nope", "fsq.nope", "nope.dim", "fsq.dim.deeper", "tslm.rope.nope"])
def test_replace_refuses_unknown_names(name):
    with pytest.raises(ValueError, match=name):
        preset("nano").replace(**{name: 1})


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: VAEConfig(encoder_rates=(2, 5), decoder_rates=(2, 2)), "product"),
        (lambda: VAEConfig(decoder_dim=24), "16"),
        (lambda: VAEConfig(latent_dim=0), "latent_dim"),
        (lambda: VAEConfig(encoder_rates=(2, 0), decoder_rates=(2, 0)), "encoder_rates"),
        (lambda: TransformerConfig(**SMALL | {"kv_heads": 3}), "kv_heads"),
        (lambda: TransformerConfig(**SMALL | {"kv_heads": 0}), "kv_heads"),
        (lambda: TransformerConfig(**SMALL | {"layers": 0}), "layers"),
        (lambda: TransformerConfig(**SMALL, head_dim=0), "head_dim"),
        (lambda: TransformerConfig(**SMALL | {"hidden": 33}), "hidden"),
        (lambda: TransformerConfig(**SMALL, head_dim=7), "even"),
        (lambda: TransformerConfig(**SMALL, rope=RopeConfig(short_factor=(1.0,))), "short_factor"),
        (lambda: FSQConfig(kind="vq"), "vq"),
        (lambda: FSQConfig(dim=0), "dim"),
        (lambda: FSQConfig(scale=-1), "scale"),
        (lambda: TrainConfig(precision="fp16"), "fp16"),
        (lambda: TrainConfig(steps=0), "steps"),
        (lambda: TrainConfig(ema=1.0), "ema"),
        (lambda: TrainConfig(join=1.5), "join"),
        (lambda: TrainConfig(own=-0.1), "own"),
        (lambda: TrainConfig(own_rounds=0), "own_rounds"),
        (lambda: VAETrainConfig(precision="int8"), "int8"),
        (lambda: VAETrainConfig(batch=0), "batch"),
        (lambda: preset("nano").replace(ralm="half"), "half"),
        (lambda: preset("nano").replace(patch=0), "patch"),
        (lambda: preset("nano").replace(vocab=0), "vocab"),
        (lambda: preset("nano").replace(**{"tslm.heads": 0}), "TransformerConfig field 'heads' must be positive, not 0"),
        (lambda: preset("nano").replace(**{"fsq.kind": "none"}), "fsq.dim"),
        (lambda: preset("huge"), "huge"),
    ],
)
def test_illegal_values_are_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train.lr", "1e-3", "TrainConfig field 'lr' must be of type float, not '1e-3'"),  # YAML takes this for a text
        ("train.lr", True, "'lr' must be of type float"),
        ("train.lr", None, "'lr' must be of type float"),
        ("train.steps", 100.5, "'steps' must be of type int, not 100.5"),
        ("train.steps", 100.0, "'steps' must be of type int"),
        ("train.betas", [0.9], r"'betas' must be of type tuple\[float, float\], not \[0.9\]"),
        ("train.betas", 0.9, "'betas' must be of type tuple"),
        ("vae.encoder_rates", [2, 5, 8, "8"], r"'encoder_rates' must be of type tuple\[int, ...\]"),
        ("vae_train.adversarial_from", "never", r"'adversarial_from' must be of type int \| None"),
        ("previous_patch", "no", "Config field 'previous_patch' must be of type bool, not 'no'"),
        ("previous_patch", 1, "'previous_patch' must be of type bool"),
        ("vae", None, "'vae' must be of type VAEConfig, not None"),
    ],
)
def test_values_of_another_type_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        preset("nano").replace(**{name: value})


def test_whole_numbers_do_for_a_float_and_either_kind_of_list_for_a_tuple():
    changed = preset("nano").replace(**{"train.max_seconds": 9, "train.betas": (0, 0.5), "vae_train.betas": [0, 0.5]})
    assert changed.train.max_seconds == 9 and changed.train.betas == changed.vae_train.betas == (0, 0.5)


def test_a_config_cannot_change_under_a_model():
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("nano").patch = 3


def test_sizes_that_follow_from_others():
    config = preset("voxcpm-0.5b")
    assert config.vae.hop == 640 and config.vae.frame_rate == 25.0 and config.patch_seconds() == 0.08
    assert config.tslm.width == 64


def test_a_box_that_is_no_box_is_refused():
    tree = to_dict(preset("nano"))
    with pytest.raises(ValueError, match="'vae' holds an object, not 3"):
        from_dict(Config, tree | {"vae": 3})
