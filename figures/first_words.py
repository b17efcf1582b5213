"""Draw figures/first_words.png from what `make run` left, with the data and how it was made beside it.

python figures/first_words.py
"""

import json
from pathlib import Path

import torch

import vox
from vox.provenance import commit, processor

HERE = Path(__file__).parent
RUN = vox.files.run_folder("runs/first_words")
ROWS = {
    "english": "a sentence it has never seen",
    "chinese": "another one",
    "prompt": "the prompt, a voice it has never heard",
    "clone": "its continuation in that voice",
    "clone_true": "the true recording of the same text and voice",
}


def main():
    metrics = vox.files.read_json(RUN / "metrics.json")
    rate = vox.preset(metrics["preset"]).vae.sample_rate
    texts = metrics["texts"]
    rows = [(f"{title}: {texts[name]}", vox.audio.load(RUN / f"{name}.wav", rate), rate) for name, title in ROWS.items()]
    made = {"command": "make run, then python figures/first_words.py", "commit": commit(), "torch": torch.__version__}
    made["hardware"] = f"{torch.get_num_threads()} threads of {processor()}"
    vox.plots.save(vox.plots.sheet(rows), HERE / "first_words.png", data={"made": made, "metrics": metrics})
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
