"""Where a figure comes from: the code and the machine that gave it."""

import platform
import subprocess
from pathlib import Path

from vox.files import HOME


def commit() -> str:
    """The commit this code is at, "" outside a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HOME, capture_output=True, text=True)
    except OSError:  # no git
        return ""
    return done.stdout.strip()


def processor() -> str:
    """What this machine calls its processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def machine() -> dict:
    """Processor, threads, torch and commit, ready for JSON."""
    import torch

    return {"cpu": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__, "commit": commit()}
