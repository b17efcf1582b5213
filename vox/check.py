"""What works on this machine: `python -m vox.check` prints one line per thing, each OK or with a remedy.

Notable choices
- every check is a function of no arguments that returns a `Result`; one that raises is a failed check, not a crash;
- nothing is imported at the top but the standard library, so the page also prints when a package is missing or broken;
- where it can be, a thing is tried and not looked up: a word is spoken, matrices are multiplied.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

PACKAGES = (
    "torch torchaudio accelerate datasets einops espeakng-loader filelock huggingface-hub"
    " jiwer matplotlib numpy pillow pyarrow pyyaml safetensors soundfile tokenizers tqdm"
).split()
LAB = "jupyterlab papermill ipykernel ipywidgets pandas psutil".split()
INSTALL = "run `make lab`, or pip install -c constraints.txt -e '.[lab]' in the clone"


class Result(NamedTuple):
    """One line: what was checked, whether it works, and what was found or how to mend it."""

    name: str
    ok: bool
    detail: str


def python() -> Result:
    """Python 3.11 or newer."""
    return _result("python", sys.version_info >= (3, 11), platform.python_version(), "install 3.11 or newer")


def packages() -> Result:
    """The packages that `import vox` needs, with their versions."""
    return _installed("packages", PACKAGES)


def lab() -> Result:
    """JupyterLab and papermill, for the notebooks and for `make run`."""
    return _installed("lab", LAB)


def cores() -> Result:
    """Processor cores this process may use."""
    from vox import files

    usable = files.cores()
    return _result("cores", usable >= 2, f"{usable}", "training works, at half the speed quoted for 2 cores")


def memory() -> Result:
    """Main memory: 4 GB are enough for every notebook."""
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return _result("memory", size >= 4, f"{size:.1f} GB", "close other programs, or train with a smaller batch")


def disk() -> Result:
    """Free space where runs and the corpus are written."""
    from vox import files

    places = files.run_folder("runs").resolve(), files.cache_folder().resolve()
    made = [next(folder for folder in (place, *place.parents) if folder.is_dir()) for place in places]  # the part that is there
    free, place = min((shutil.disk_usage(folder).free / 1e9, place) for folder, place in zip(made, places, strict=True))
    return _result("disk", free >= 2, f"{free:.1f} GB free for {place}", "make room: corpora and checkpoints take up to 2 GB")


def bf16() -> Result:
    """Whether bfloat16 products are faster than float32 ones here (they are with AMX, AVX512-BF16 or a GPU)."""
    ratio = bf16_speed()
    units = [unit for unit in ("amx_bf16", "avx512_bf16") if unit in _processor_flags()]
    found = f"{ratio:.1f} times the speed of float32 ({', '.join(units) or 'no unit for it found'})"
    return _result("bf16", ratio > 1, found, 'train in float32 (precision "fp32"), as a processor without AVX-512 does by itself')


def gpu() -> Result:
    """A CUDA GPU, which nothing here requires."""
    import torch

    if torch.cuda.is_available():
        size = torch.cuda.get_device_properties(0).total_memory / 1e9
        return Result("gpu", True, f"{torch.cuda.get_device_name(0)}, {size:.0f} GB")
    return Result("gpu", False, "none: presets nano and tiny do without; to train small, use a machine with CUDA")


def espeak() -> Result:
    """The synthesiser of the default corpus, by saying "one" in English and in Mandarin."""
    from vox.espeak import render

    seconds = [len(render(word, voice)) / 16000 for word, voice in (("one", "en-us+f2"), ("一", "cmn+f2"))]
    return Result("espeak", True, f"said one in {seconds[0]:.2f} s and 一 in {seconds[1]:.2f} s")


REQUIRED = (python, packages, espeak, disk)
USEFUL = (lab, cores, memory, bf16, gpu)


def bf16_speed(size: int = 1024) -> float:
    """Seconds of a float32 [size, size] product over those of a bfloat16 one, best of 5 each, on the processor."""
    import torch

    def seconds(dtype):
        a = torch.ones(size, size, dtype=dtype)  # [size, size]
        times = []
        for _ in range(6):  # the first warms up
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return seconds(torch.float32) / seconds(torch.bfloat16)


def run(check) -> Result:
    """The result of one check; an exception becomes a failed one that says what was raised."""
    try:
        return check()
    except Exception as error:
        return Result(check.__name__, False, f"{type(error).__name__}: {error}; {INSTALL}")


def main() -> int:
    """Print a line per check. Returns the exit status: 1 if something required fails."""
    failed = False
    for check in REQUIRED + USEFUL:
        name, ok, detail = run(check)
        failed |= not ok and check in REQUIRED
        word = "OK" if ok else "MISSING" if check in REQUIRED else "note"
        print(f"{word:8}{name:10}{detail}", flush=True)
    print("Something required is missing: follow the remedies above." if failed else "Ready.")
    return int(failed)


def _result(name, ok, found, remedy):
    return Result(name, ok, found if ok else f"{found}: {remedy}")


def _installed(name, packages):
    versions, missing = [], []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    return _result(name, not missing, ", ".join(missing or versions), f"not installed; {INSTALL}")


def _processor_flags():
    info = Path("/proc/cpuinfo")  # Linux only; elsewhere the measured ratio has to do
    return info.read_text(encoding="utf-8").split() if info.exists() else []


if __name__ == "__main__":
    sys.exit(main())
