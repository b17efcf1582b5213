"""How much faster two workers are than one, on runs of equal size with one thread each.

    PYTHONPATH=. python tests/bench_lab.py [seconds] [rounds]      (30 of work per run, and 3 rounds, by default)

A round is four runs by one worker and four by two, in turns, each sweep from nothing. A run is a notebook that multiplies matrices, a
fixed number of times that takes so many seconds alone; start and end of its process and kernel count too. Writes
data/results/bench_lab.json. Not a test. Needs two cores that nothing else is using.
"""

import datetime
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from vox import lab
from vox.files import HOME, write_json
from vox.provenance import machine

RUNS, SIZE = 4, 512
WORK = f"""
import torch

torch.manual_seed(seed)
a = torch.randn({SIZE}, {SIZE}) / {SIZE} ** 0.5
b = a
for _ in range(products):
    b = a @ b / b.std()
threads = torch.get_num_threads()
assert threads == 1, threads
"""


def products(seconds: float) -> int:
    """How many products one thread computes in so many seconds."""
    import torch  # not above, where every worker would load it

    torch.set_num_threads(1)
    a = torch.randn(SIZE, SIZE) / SIZE**0.5
    b, count, began = a, 0, time.perf_counter()
    while time.perf_counter() - began < min(seconds, 5.0):
        b = a @ b / b.std()
        count += 1
    return max(1, round(count * seconds / (time.perf_counter() - began)))


def seconds_of(folder: Path, workers: int, count: int) -> float:
    """Wall time of the sweep with so many workers."""
    path = folder / f"workers{workers}.yaml"
    path.write_text(f"notebook: work.ipynb\nbase: {{products: {count}}}\nseeds: {list(range(RUNS))}\nresources: {{workers: {workers}}}\n")
    began = time.perf_counter()
    results = lab.sweep(path)
    assert [result["state"] for result in results.values()] == ["done"] * RUNS, results
    return time.perf_counter() - began


def main():
    import test_lab

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    count, times = products(seconds), {1: [], 2: []}
    for _ in range(rounds):
        for workers in times:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["VOX_HOME"] = folder
                test_lab.write_notebook(Path(folder) / "work.ipynb", (WORK,), "products: int = 1\nseed: int = 0")
                times[workers].append(seconds_of(Path(folder), workers, count))
                print(f"{workers} worker(s): {times[workers][-1]:.1f} s")
    ratios = [one / two for one, two in zip(times[1], times[2], strict=True)]
    result = {"runs": RUNS, "seconds_of_work_each": seconds, "one_worker": times[1], "two_workers": times[2]}
    result |= {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)], "cores": os.cpu_count()}
    command = " ".join(["PYTHONPATH=. python tests/bench_lab.py", *sys.argv[1:]])
    where = machine() | {"threads": 1, "command": command, "date": datetime.date.today().isoformat()}
    write_json(HOME / "data" / "results" / "bench_lab.json", result | where)
    print(f"two workers are {result['ratio']:.2f} times as fast as one ({min(ratios):.2f} … {max(ratios):.2f})")


if __name__ == "__main__":
    main()
