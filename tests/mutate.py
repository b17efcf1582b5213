"""Do the notebooks notice when vox is wrong? Break one line of a copy of vox at a time and run the notebook that teaches it, by nbval.

    PYTHONPATH=. python tests/mutate.py [NUMBER...]        writes data/results/mutations.json: who noticed, and in which cell

A mutation that its notebook does not notice makes the exit status 1. Not a test; tests/test_mutations.py holds the list to the code.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from vox.files import HOME, write_json
from vox.provenance import machine

RESULT = HOME / "data/results/mutations.json"


class Mutation(NamedTuple):
    """One line of vox, and what is put in its place."""

    what: str
    module: str
    line: str  # occurs once in the module
    broken: str
    notebook: str


MUTATIONS = [
    Mutation("the stop label sits one patch early", "batch", "stop[b, end - 1] = 1", "stop[b, end - 2] = 1", "01_speech_and_text"),
    Mutation("KL with the wrong sign", "vae_loss", "return 0.5 * (mu.square()", "return -0.5 * (mu.square()", "02_audio_vae"),
    Mutation("the AudioVAE looks ahead", "vae", "F.pad(x, (self.pad, 0))", "F.pad(x, (0, self.pad))", "02_audio_vae"),
    Mutation("FSQ rounds down", "fsq", "z + (torch.round(z * scale)", "z + (torch.floor(z * scale)", "03_fsq"),
    Mutation("no gradient through FSQ", "fsq", "/ scale - z).detach()", "/ scale - z)", "03_fsq"),
    Mutation("RoPE of another base", "transformer", "1.0 / self.theta ** (", "1.0 / (self.theta / 10) ** (", "04_tslm"),
    Mutation("RALM does not see past patches", "ralm", "forward(plan + past, cache)", "forward(plan, cache)", "05_ralm"),
    Mutation("guidance of the wrong sign", "flow", "base + cfg * (conditional", "base - cfg * (conditional", "06_locdit"),
    Mutation("the velocity points the other way", "flow", "t * z, z - x", "t * z, x - z", "06_locdit"),
    Mutation("the plan of the next patch", "voxcpm", "plan = plan[row, i - 1]", "plan = plan[row, i]", "07_voxcpm"),
    Mutation("added words are no errors", "metrics", "found.deletions + found.insertions", "found.deletions", "09_evaluate"),
]


def broken(mutation: Mutation, source: str) -> str:
    """The module's source with the mutation. Raises ValueError unless its line occurs once."""
    if (times := source.count(mutation.line)) != 1:
        raise ValueError(f"vox/{mutation.module}.py holds {mutation.line!r} {times} times: say it anew in tests/mutate.py")
    return source.replace(mutation.line, mutation.broken)


def copy(folder: Path, mutation: Mutation | None) -> Path:
    """A copy of the repository's code, with the mutation, and the same data."""
    for name in ("vox", "notebooks", "figures"):
        shutil.copytree(HOME / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(HOME / "pyproject.toml", folder)
    (folder / "data").symlink_to(HOME / "data")
    if mutation:
        path = folder / "vox" / f"{mutation.module}.py"
        path.write_text(broken(mutation, path.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


def notices(notebook: str, mutation: Mutation | None) -> str:
    """What nbval says first when it runs a notebook on the copy; "" if it finds nothing wrong."""
    with tempfile.TemporaryDirectory() as folder:
        folder = copy(Path(folder), mutation)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env"]
        environment = os.environ | {"PYTHONPATH": str(folder), "VOX_BUDGET": "4", "OMP_NUM_THREADS": "1"}
        command += [f"{folder}/notebooks/{notebook}.ipynb", f"--rootdir={folder}"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            return ""
        said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
        failed = re.findall(r"^FAILED .*?::(Cell \d+)", said, re.M)
        if not failed:
            raise RuntimeError(f"{notebook} could not be run: {(done.stdout + done.stderr)[-2000:]}")
        errors = re.findall(r"^(\w*(?:Error|Exception)\b.*)", said, re.M)
        return f"{failed[0]}: {errors[0].partition(' ')[0] if errors else 'an output that is not the stored one'}"


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help=", ".join(f"{k}: {m.what}" for k, m in enumerate(MUTATIONS)))
    numbers = parser.parse_args().numbers
    chosen = [MUTATIONS[number] for number in numbers] or MUTATIONS
    rows = []
    for notebook in dict.fromkeys(mutation.notebook for mutation in chosen):
        if found := notices(notebook, None):
            raise SystemExit(f"{notebook} fails on vox as it is: {found}")
        for mutation in chosen:
            if mutation.notebook == notebook:
                rows.append(mutation._asdict() | {"noticed": notices(notebook, mutation)})
                print(mutation.what, "->", rows[-1]["noticed"] or "NOT NOTICED", flush=True)
    if not numbers:
        write_json(RESULT, {"machine": machine(), "rows": rows})
    return sum(not row["noticed"] for row in rows)


if __name__ == "__main__":
    sys.exit(min(1, main()))
