"""Training state as plain data: checkpoints that are whole or not there.

A checkpoint is a folder `step-000200` of safetensors files and one `state.json`, which holds the step, everything that is
no tensor, and the size and SHA-256 of each file beside it. No pickle anywhere, so loading runs no code.

Notable choices
- a checkpoint is written to a hidden folder and renamed into place: killed at any moment, it is there whole or not at all;
- the last two are kept: one that was damaged later (disk, copying) is found by its hash, refused by name, and the one
  before it is used.
"""

import hashlib
import os
import shutil
import warnings
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from vox.files import read_json, replacing, write_json

KEEP = 2


def write_tensors(path, tensors: dict[str, Tensor]):
    """Write tensors (any device) as one safetensors file, aside and then renamed."""
    with replacing(path) as aside:
        safetensors.torch.save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)


def read_tensors(path) -> dict[str, Tensor]:
    """Read a safetensors file onto the CPU; ValueError naming the file if it is damaged."""
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it") from error


def file_hash(path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors: equal hash, equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()


def save_checkpoint(folder, step: int, files: dict[str, dict[str, Tensor]], state: dict):
    """Write `folder/step-SSSSSS` with one safetensors file per entry of `files` and `state` (JSON values) in state.json.

    Older checkpoints than the last two are deleted, and so are leftovers of a killed process and checkpoints that claim a
    later step (they can only be damaged ones that were refused).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover)
    final = folder / f"step-{step:06d}"
    aside = folder / f".{final.name}.{os.getpid()}"
    aside.mkdir()
    record = {}
    for name, tensors in files.items():
        path = aside / f"{name}.safetensors"
        write_tensors(path, tensors)
        record[path.name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    write_json(aside / "state.json", {"step": step, **state, "files": record})
    if final.exists():
        shutil.rmtree(final)
    os.replace(aside, final)
    older = [path for path in checkpoints(folder) if step_of(path) < step]
    later = [path for path in checkpoints(folder) if step_of(path) > step]
    for path in older[: -KEEP + 1] + later:
        shutil.rmtree(path)


def step_of(path: Path) -> int:
    """The step that a checkpoint's name tells."""
    return int(path.name.removeprefix("step-"))


def checkpoints(folder) -> list[Path]:
    """The checkpoint folders in `folder`, oldest first."""
    return sorted((path for path in Path(folder).glob("step-*") if path.name[5:].isdecimal()), key=step_of)


def load_checkpoint(folder) -> tuple[dict, dict[str, dict[str, Tensor]]] | None:
    """The newest undamaged checkpoint in `folder` as (state, files); None if there is no checkpoint at all.

    A damaged one is named in a warning and passed over. If all are damaged: ValueError that names them.
    """
    damaged = []
    for path in reversed(checkpoints(folder)):
        reason = _damage(path)
        if reason is None:
            state = read_json(path / "state.json")
            return state, {name.removesuffix(".safetensors"): read_tensors(path / name) for name in state["files"]}
        warnings.warn(f"checkpoint {path} is damaged and will not be used: {reason}", stacklevel=3)
        damaged.append(f"{path} ({reason})")
    if damaged:
        raise ValueError(f"every checkpoint is damaged: {'; '.join(damaged)}. Restore one from a copy, or start anew with resume=False")
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        record = read_json(path / "state.json")["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"state.json cannot be read: {error!r}"
    for name, expected in record.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, {expected['bytes']} were written"
        if file_hash(file) != expected["sha256"]:
            return f"the contents of {name} have changed since they were written"
    return None


def without(tree: dict, *names: str) -> dict:
    """A dictionary less some keys."""
    return {name: value for name, value in tree.items() if name not in names}


def difference(saved, now, name: str = "") -> str | None:
    """The first field in which two trees differ, in words; None if they are equal."""
    if isinstance(saved, dict) and isinstance(now, dict):
        fields = (difference(saved.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in now | saved)
        return next(filter(None, fields), None)
    return None if saved == now else f"{name} was {saved} and is now {now}"
