"""Folders: what is loaded and exported again is the released layout to the last byte, and the official reader takes it."""

import contextlib
import io
import json

import pytest
import reference
import torch
from reference import BOUND, VoxCPMModel, close, same
from safetensors.torch import load_file

from vox.config import preset
from vox.official import load
from vox.text import CharTokenizer
from vox.voxcpm import VoxCPM

MAIN, AUDIO = ("model.safetensors", "pytorch_model.bin"), ("audiovae.safetensors", "audiovae.pth")


def official_load(folder):
    """The official reader on a folder. It loads with strict=False, so the keys are compared here. Returns the model."""
    missing = []
    original = torch.nn.Module.load_state_dict

    def strict(self, state, strict=True, **options):
        result = original(self, state, strict=False, **options)
        missing.extend((*result.missing_keys, *result.unexpected_keys))
        return result

    torch.nn.Module.load_state_dict = strict
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            model = VoxCPMModel.from_local(str(folder), optimize=False, training=True, device="cpu")
    finally:
        torch.nn.Module.load_state_dict = original
    assert not missing, f"missing or unexpected in {folder}: {missing[:5]}"
    return model.eval()


def assert_same_files(left, right):
    """Two safetensors files hold the same names, dtypes, shapes and bytes."""
    left, right = (load_file(path) if not isinstance(path, dict) else path for path in (left, right))
    assert left.keys() == right.keys(), f"names differ: {sorted(left.keys() ^ right.keys())[:5]}"
    for name in left:
        assert left[name].dtype == right[name].dtype, f"{name}: {left[name].dtype} and {right[name].dtype}"
        assert left[name].shape == right[name].shape, name
        same(left[name].contiguous().view(torch.uint8), right[name].contiguous().view(torch.uint8), name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("main", MAIN)
@pytest.mark.parametrize("audio", AUDIO)
def test_round_trip(tokenizer, tmp_path, main, audio, dtype):
    """Every released combination of files: load, save, compare names, dtypes, shapes and bytes; the official reader takes it."""
    tree = reference.config(lm={"kv_channels": 12, "use_mup": True}, encoder={"kv_channels": 12}, dit={"kv_channels": 12})
    tree |= {"dtype": str(dtype).removeprefix("torch.")}
    official = reference.model(tree, tokenizer)
    folder = reference.save(official, tree, tokenizer, tmp_path / "released", main, audio, dtype)
    load(folder, device="cpu").save(tmp_path / "ours")
    main_weights = {name: tensor.to(dtype) for name, tensor in reference.main_weights(official).items()}
    assert_same_files(tmp_path / "ours" / "model.safetensors", main_weights)
    assert_same_files(tmp_path / "ours" / "audiovae.safetensors", dict(official.audio_vae.state_dict()))
    back = official_load(tmp_path / "ours").state_dict()
    expected = official.state_dict()
    assert back.keys() == expected.keys()
    for name, tensor in back.items():
        same(tensor, expected[name] if name.startswith("audio_vae.") else expected[name].to(dtype), name)


@pytest.mark.parametrize("name", list(reference.CONFIGS))
def test_config_survives(pair, tmp_path, name):
    """Every field of the released config that the official reader knows comes back from our export."""
    pair(name).ours.save(tmp_path)
    before = reference.VoxCPMConfig.model_validate(pair(name).tree).model_dump()
    after = reference.VoxCPMConfig.model_validate_json((tmp_path / "config.json").read_text()).model_dump()
    before.pop("device"), after.pop("device")
    for lm in (before["lm_config"], after["lm_config"]) if name == "no_rope" else ():  # no positions, no use for their settings
        del lm["max_position_embeddings"], lm["rope_theta"], lm["rope_scaling"]
    assert after == before


@torch.no_grad()
@pytest.mark.parametrize("name", ["v1", "v1.5", "long_rope"])
def test_saved_folder_loads_equal(pair, tmp_path, name):
    """Saved and loaded again by us, the model has the same config and the same weights."""
    pair(name).ours.save(tmp_path)
    again = load(tmp_path, device="cpu")
    assert again.config == pair(name).ours.config
    for key, tensor in pair(name).ours.state_dict().items():
        same(again.state_dict()[key], tensor, key)


@torch.no_grad()
def test_a_model_of_ours_speaks_there(tmp_path, tokenizer):
    """A fresh `nano`, exported, is read by the official package and plans the same: no released file was its template."""
    torch.manual_seed(1)
    ours = VoxCPM(preset("nano")).eval()
    ours.save(tmp_path)
    reference.save_tokenizer(tmp_path)  # the official package reads byte-pair tokenizers only
    official = official_load(tmp_path)
    x = torch.randn(1, 12, ours.config.tslm.hidden)
    close(ours.tslm(x), official.base_lm(x)[0], what="nano in the official package, TSLM")
    patches = torch.randn(1, 3, ours.config.patch, ours.config.vae.latent_dim)
    expected = official.enc_to_lm_proj(official.feat_encoder(patches))
    close(ours.embed(patches), expected, what="nano in the official package, LocEnc")
    z = torch.randn(1, ours.config.vae.latent_dim, 3)
    close(ours.vae.decode(z), official.audio_vae.decode(z), what="nano in the official package, VAE")


def test_newer_folder_says_what_it_is(tmp_path):
    """A VoxCPM2 folder is refused by name, whatever else is in it."""
    for architecture in ("voxcpm2", "VoxCPM2"):
        tmp_path.joinpath("config.json").write_text(json.dumps({"architecture": architecture, "lm_config": {}}))
        with pytest.raises(ValueError, match="VoxCPM2"):
            load(tmp_path)


def test_tokens(pair, tokenizer):
    """Text to ids as the official wrapper does it: Chinese words of several characters are split."""
    official = reference.mask_multichar_chinese_tokens(tokenizer)
    ours = pair("v1").ours.tokenizer
    for text in ("the one ten", "你好世界", "世界你好 one", "hello Z 漢", "你好", "two 二十, the 你好!", "a", "ten, one."):
        assert list(ours.encode(text)) == official(text), text
    assert "世界你好" in tokenizer.get_vocab(), "without such a token this test would show nothing"


def test_figure_can_fail():
    """The metric itself sees a difference of twice the bound, a wrong shape and a value that is no number."""
    a = torch.randn(100)
    with pytest.raises(AssertionError, match="max"):
        close(a + 2 * BOUND * a.abs().max(), a, what="-")
    with pytest.raises(AssertionError, match="shapes"):
        close(a[1:], a, what="-")
    with pytest.raises(AssertionError, match="finite"):
        close(a * float("nan"), a, what="-")
    reference.FIGURES.pop("-")


def test_what_the_official_package_cannot_read_is_said(tmp_path):
    """Its config.json has one muP switch, one number of key heads and so on, for all stacks."""
    config = preset("nano").replace(**{"locdit.mup": True})
    model = VoxCPM(config, tokenizer=CharTokenizer.learn(["one"], config.vocab))
    with pytest.warns(UserWarning, match="locdit.mup is not that of tslm"):
        model.save(tmp_path / "model")
    assert load(tmp_path / "model", device="cpu").config == config
