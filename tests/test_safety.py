"""Weights are data: loading runs no code from a file, and a file that is no model is refused by name."""

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from vox import layout, official
from vox.config import Config, TransformerConfig, VAEConfig
from vox.official import load, load_vae
from vox.voxcpm import VoxCPM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A healthy model folder of a few thousand parameters."""
    stack = TransformerConfig(layers=1, hidden=16, ffn=16, heads=2, kv_heads=1)
    vae = VAEConfig(encoder_dim=2, latent_dim=4, decoder_dim=16)
    config = Config(tslm=stack, ralm_layers=1, locenc=stack, locdit=stack, vae=vae, vocab=512, max_length=64).replace(**{"fsq.dim": 8})
    folder = tmp_path_factory.mktemp("model")
    VoxCPM(config).save(folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the healthy folder to damage."""
    shutil.copytree(folder, tmp_path / "model")
    return tmp_path / "model"


class Malicious:
    """Unpickled without care, this writes a file; in the wild it would do worse."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def zipped(path, payload):
    """A torch zip file whose pickle is `payload`."""
    torch.save({"weight": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, data in entries.items():
            file.writestr(name, payload if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("kind", ["zip", "bare pickle", "inside state_dict"])
@pytest.mark.parametrize("good, bad", [("model.safetensors", "pytorch_model.bin"), ("audiovae.safetensors", "audiovae.pth")])
def test_malicious_pickle_is_refused(copy, tmp_path, good, bad, kind):
    trace = tmp_path / "trace"
    weights = load_file(copy / good)
    content = {"state_dict": weights | {"extra": Malicious(trace)}} if kind == "inside state_dict" else Malicious(trace)
    if kind == "zip":
        zipped(copy / bad, pickle.dumps(content, protocol=2))
    elif kind == "bare pickle":
        (copy / bad).write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, copy / bad)
    (copy / good).unlink()
    with pytest.raises(ValueError, match=f"{bad}.*not loaded"):
        load(copy, device="cpu")
    assert not trace.exists(), "code from the file was executed"
    if kind != "zip":  # the same file, opened without care, does execute: the test is about something
        torch.load(copy / bad, weights_only=False) if kind == "inside state_dict" else pickle.loads((copy / bad).read_bytes())
        assert trace.exists()


def test_healthy_folder_loads_and_saves_no_pickle(folder):
    model = load(folder, device="cpu")
    assert not model.training
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors"}


def test_weights_stored_in_16_bits_come_back_to_the_models_own(folder, tmp_path):
    model = load(folder, device="cpu")
    model.save(tmp_path, half=True)
    for file in ("model.safetensors", "audiovae.safetensors"):
        assert {value.dtype for value in load_file(tmp_path / file).values()} == {torch.float16}
    again = load(tmp_path, device="cpu")
    assert again.dtype == model.dtype == torch.float32
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float()), name
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = 1e5  # finite, but not in 16 bits
    with pytest.raises(ValueError, match="not finite"):
        model.save(tmp_path, half=True)


def test_an_audiovae_loads_without_its_language_models(copy, folder, tmp_path):
    (copy / "model.safetensors").unlink()
    vae = load_vae(copy, device="cpu")
    assert not vae.training
    for name, value in load(folder, device="cpu").vae.state_dict().items():
        assert torch.equal(vae.state_dict()[name], value), name
    layout.write_vae(tmp_path / "alone", load(folder, device="cpu").config, vae)
    again = load_vae(tmp_path / "alone", device="cpu")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in vae.state_dict().items())
    (copy / "audiovae.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="audiovae.safetensors"):
        load_vae(copy, device="cpu")
    vae.decoder.model[0].bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        layout.write_vae(tmp_path / "alone", load(folder, device="cpu").config, vae)
    assert load_vae(tmp_path / "alone", device="cpu")


@pytest.mark.parametrize("file", ["model.safetensors", "audiovae.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights(copy, file, share):
    data = (copy / file).read_bytes()
    (copy / file).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=file):
        load(copy, device="cpu")


@pytest.mark.parametrize("good, bad", [("model.safetensors", "pytorch_model.bin"), ("audiovae.safetensors", "audiovae.pth")])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_torch_file(copy, good, bad, share):
    torch.save(load_file(copy / good), copy / bad)
    (copy / good).unlink()
    load(copy, device="cpu")  # whole, it is fine
    data = (copy / bad).read_bytes()
    (copy / bad).write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=bad):
        load(copy, device="cpu")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "audiovae.safetensors"])
def test_missing_file(copy, file):
    (copy / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        load(copy, device="cpu")


@pytest.mark.parametrize("file", ["model.safetensors", "audiovae.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit(copy, file, damage):
    """A key too few, a key too many or a wrong shape: the message names the file and the weight."""
    weights = load_file(copy / file)
    name = sorted(weights)[0]
    if damage == "missing":
        del weights[name]
    elif damage == "extra":
        name = "surprise.weight"
        weights[name] = torch.zeros(3)
    else:
        weights[name] = torch.zeros(*weights[name].shape, 2)
    save_file(weights, copy / file)
    with pytest.raises(ValueError) as error:
        load(copy, device="cpu")
    assert file in str(error.value) and name in str(error.value), error.value


NO_CONFIGS = ["", "{", "[]", "12", "not JSON", '{"architecture": "voxcpm"}', '{"architecture": 7}', '{"vox": 3}', '{"vox": {"patch": 2}}']


@pytest.mark.parametrize("data", [*(text.encode() for text in NO_CONFIGS), b"\xff\xfe"])
def test_config_that_is_none(copy, data):
    (copy / "config.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"config\.json"):
        load(copy, device="cpu")


WRONG = {"patch_size": "two", "lm_config": None, "dtype": "int7", "residual_lm_num_layers": -1, "encoder_config": [], "audio_vae_config": 3}


@pytest.mark.parametrize("field, value", WRONG.items())
def test_config_with_a_wrong_field(copy, field, value):
    tree = json.loads((copy / "config.json").read_text())
    del tree["vox"]  # as the official package writes it
    tree[field] = value
    (copy / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"config\.json"):
        load(copy, device="cpu")


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize("name, field, value", [("num_attention_heads", "heads", 0), ("num_hidden_layers", "layers", 4.0)])
def test_config_with_a_wrong_size(copy, official, name, field, value):
    tree = json.loads((copy / "config.json").read_text())
    tree["vox"]["tslm"][field] = tree["lm_config"][name] = value
    if official:
        del tree["vox"]
    (copy / "config.json").write_text(json.dumps(tree))
    for read in (load, load_vae):
        with pytest.raises(ValueError, match=rf"config\.json: TransformerConfig field '{field}' must be"):
            read(copy, device="cpu")


NO_TOKENIZERS = [
    ("tokenizer_config.json", "[]"),
    ("tokenizer_config.json", '{"characters": 5}'),
    ("tokenizer_config.json", '{"characters": "ab", "merges": [["a", "c"]]}'),  # there is no c
    ("tokenizer_config.json", '{"characters": "ab", "merges": ["abc"]}'),
    ("tokenizer_config.json", '{"unk_token": []}'),
    ("tokenizer.json", "[]"),
    ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "c"]]}}'),
]


@pytest.mark.parametrize("file, text", NO_TOKENIZERS)
def test_tokenizer_that_is_none(copy, file, text):
    if file == "tokenizer.json":  # our own characters need no tokenizer.json
        (copy / "tokenizer_config.json").unlink()
    (copy / file).write_text(text)
    with pytest.raises(ValueError, match=rf"{file}.* cannot be read: .+ Fetch it again"):
        load(copy, device="cpu")


def test_no_such_folder_or_number_format(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="dtype"):
        load(folder, dtype="float7")


def test_a_preset_is_found_where_it_ships(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(official, "SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path / "..")
    with pytest.raises(FileNotFoundError, match="no weights of preset 'tiny'.*make tiny"):
        load("tiny")
    shutil.copytree(folder, tmp_path / "tiny")
    assert official.find("tiny") == tmp_path / "tiny"
    (tmp_path / "tiny" / "config.json").unlink()  # a folder that is there and holds no model
    with pytest.raises(FileNotFoundError, match="config.json"):
        load("tiny")


def test_lost_model_is_not_written(folder, copy):
    """A model with a value that is no number does not replace a good file."""
    model = load(copy, device="cpu")
    before = (copy / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.stop_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="stop_proj"):
        model.save(copy)
    assert (copy / "model.safetensors").read_bytes() == before
