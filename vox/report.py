"""What a run left, on one page that can be sent to somebody: `python -m vox.report FOLDER` writes FOLDER/report.html.

Notable choices
- the page is one file: pictures and sound lie inside it, sound as mp3, a tenth of wav. What would make the page larger than 10 MB is
  left out and named;
- it knows files and not notebooks: every *.png is a picture, every *.wav a player, every metrics.json a table, here and in the folders
  below. In metrics.json, "texts" and "speech" tell by the name of a wav what it says and what is known of it;
- a figure stands with its 95 % interval, and beside `x` stands `true_x`: the same judge on true recordings, that is its own error;
- everything that comes from a file is escaped: a text may hold any character.
"""

import base64
import html
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import vox
from vox import audio, files, provenance
from vox.intervals import Figure

LIMIT = 10_000_000  # bytes of a page
RESERVED = 1_000_000  # of them for tables and configs
ASIDE = ("model", "vae", "voxcpm")  # folders of weights and checkpoints
STYLE = """body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:16px/1.5 sans-serif;background:#fbfbf9;color:#222}
img{max-width:100%}table{border-collapse:collapse}td,th{padding:.1rem 1.5rem .1rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid #d9d9d6}figure{margin:0 0 1rem}small{color:#666}audio{display:block}pre{overflow-x:auto}"""


# ---- values ------------------------------------------------------------------------------------------------------------


def is_figure(value) -> bool:
    """Whether a value of a JSON tree is a measured figure: {"value", "low", "high", "n"}."""
    return isinstance(value, dict) and set(value) == set(Figure._fields)


def plain(value) -> str:
    """A value of a JSON tree in few characters: a figure with its interval, a number with four digits, the rest as JSON has it."""
    if is_figure(value):
        return f"{plain(value['value'])} ({plain(value['low'])} … {plain(value['high'])}, n = {value['n']})"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def rows(tree, name: str = "") -> Iterator[tuple[str, str, str]]:
    """The leaves of a JSON tree: names joined by dots, value, and what `true_` and its name holds ("" if nothing does)."""
    pairs = dict(enumerate(tree)) if isinstance(tree, list) else tree
    nested = isinstance(tree, list) and any(isinstance(value, dict | list) for value in tree)
    if is_figure(tree) or not (isinstance(tree, dict) or nested):
        yield name, plain(tree), ""
        return
    for key, value in pairs.items():
        if str(key).startswith("true_") and key.removeprefix("true_") in pairs:
            continue  # it stands beside the other
        true = plain(pairs[f"true_{key}"]) if f"true_{key}" in pairs else ""
        yield from ((inner, text, other or true) for inner, text, other in rows(value, f"{name}.{key}".lstrip(".")))


def table(tree) -> str:
    """A JSON tree as an HTML table, "" if it is empty. The column for true recordings is there if something is in it."""
    lines = list(rows(tree))
    width = 3 if any(true for *_, true in lines) else 2
    head = ("", "value", "the same on true recordings")[:width]
    body = [head, *(line[:width] for line in lines)] if lines else []
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in body)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>" if lines else ""


# ---- the page ----------------------------------------------------------------------------------------------------------


def picture(path: Path) -> str:
    """A PNG file as HTML that holds it."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><figcaption>{html.escape(path.stem)}</figcaption><img alt="" src="data:image/png;base64,{data}"></figure>'


def player(path: Path, text: str, known) -> str:
    """A sound file as HTML that plays it, with its text and with what is known of it, a JSON tree. ValueError names a broken one."""
    samples, rate = audio.read(path)
    facts = (f"{name} {value}" + f" (true recording: {true})" * bool(true) for name, value, true in rows(known))
    speech = audio.Speech(samples.mean(0), rate, text)
    return f"<figure><b>{html.escape(path.stem)}</b>{speech.player()}<small>{html.escape(' · '.join(facts))}</small></figure>"


def section(folder: Path, left: int) -> tuple[str, list[str]]:
    """What a folder itself holds as HTML, "" if nothing, and the names of the files that `left` bytes had no room for."""
    path, without = folder / "metrics.json", []
    metrics = files.read_json(path) if path.is_file() else {}
    if not isinstance(metrics, dict):
        raise ValueError(f"{path} must hold names and values in braces, not {type(metrics).__name__}: restore it, or delete it")
    texts, known = ({**tree} if isinstance(tree := metrics.get(name), dict) else {} for name in ("texts", "speech"))
    parts = []
    for each in [*sorted(folder.glob("*.png")), *sorted(folder.glob("*.wav"))]:
        name = each.stem
        part = picture(each) if each.suffix == ".png" else player(each, plain(texts.pop(name, "")), known.pop(name, {}))
        if len(part) > left:  # nearly all of it is base64, a byte a character
            without.append(each.name)
            continue
        parts.append(part)
        left -= len(part)
    rest = {name: value for name, value in metrics.items() if not isinstance(value, dict) or name not in ("texts", "speech")}
    parts.append(table(rest | {name: tree for name, tree in (("texts", texts), ("speech", known)) if tree}))
    config = folder / "model" / "config.json"
    if config.is_file():
        text = json.dumps(files.read_json(config), indent=1, ensure_ascii=False)
        parts.append(f"<details><summary>config of the model</summary><pre>{html.escape(text)}</pre></details>")
    return "".join(parts), without


def write(folder) -> Path:
    """Write report.html of a run's folder into it, and return its path.

    Raises FileNotFoundError if there is no such folder, ValueError if nothing in it can be shown and for a file that is broken.
    """
    folder = files.run_folder(folder) if files.run_folder(folder).is_dir() else Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: name the folder of a run, such as runs/first_words")
    below = sorted(path for path in folder.rglob("*") if path.is_dir())
    inside = [path for path in below if not any(part in ASIDE or part.startswith(".") for part in path.relative_to(folder).parts)]
    body, without, left = [], [], LIMIT - RESERVED
    for each in [folder, *inside]:
        name = folder.resolve().name if each == folder else each.relative_to(folder).as_posix()
        part, missed = section(each, left)
        left -= len(part)
        without += [f"{name}/{file}" for file in missed]
        body += [f"<h2>{html.escape(name)}</h2>{part}"] if part or missed else []
    if not body:
        raise ValueError(f"{folder} holds no picture (.png), no sound (.wav) and no metrics.json: name the folder of a run that has begun")
    if without:
        body.append(f"<p>Left out, since a page holds {LIMIT // 10**6} MB: {html.escape(', '.join(without))}</p>")
    made = {"vox": vox.__version__} | provenance.machine()
    title = html.escape(folder.resolve().name)
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head><body>'
    end = f"<h2>This page</h2>{table(made)}<p>In brackets: 95 % interval, number of cases.</p></body></html>\n"
    with files.replacing(folder / "report.html") as aside:
        aside.write_text(f"{page}<h1>{title}</h1>{''.join(body)}{end}", encoding="utf-8")
    return folder / "report.html"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python -m vox.report FOLDER: writes FOLDER/report.html of what a run left there")
    try:
        print(write(sys.argv[1]))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
