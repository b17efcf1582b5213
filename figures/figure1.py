"""Draw figures/figure1.png, the boxes of VoxCPM and how they are wired (after Figure 1 of the paper), and what it shows as JSON.

python figures/figure1.py
"""

from pathlib import Path

from matplotlib.patches import FancyBboxPatch

import vox
from vox import plots

HERE = Path(__file__).parent
SIZE = 1.5, 0.62  # of a box
BOXES = {  # name: (x, y, what it does, notebook that builds it, colour)
    "text": (0, 3, "what is to be said", "01_speech_and_text", 6),
    "past patches": (0, 1, "what was said so far", "01_speech_and_text", 6),
    "LocEnc": (2.1, 1, "a patch → one vector", "05_ralm", 4),
    "TSLM": (4.2, 3, "reads, and plans", "04_tslm", 0),
    "FSQ": (6.3, 3, "onto a grid", "03_fsq", 1),
    "stop head": (8.4, 3, "was that the last?", "08_generate", 3),
    "RALM": (6.3, 1, "what the grid dropped", "05_ralm", 0),
    "sum": (8.4, 1, "FSQ + residual = μ", "07_voxcpm", 3),
    "LocDiT": (8.4, -0.7, "noise → next patch", "06_locdit", 2),
    "next patch": (6.3, -0.7, "P latents", "08_generate", 6),
    "AudioVAE": (4.2, -0.7, "latents ↔ sound", "02_audio_vae", 5),
    "speech": (2.1, -0.7, "judged in", "09_evaluate", 6),
}
ARROWS = [  # from, to, what goes along it, corners in between
    ("text", "TSLM", "", ()),
    ("past patches", "LocEnc", "", ()),
    ("LocEnc", "TSLM", "E", ((4.2, 1),)),
    ("LocEnc", "RALM", "E", ()),
    ("TSLM", "FSQ", "h", ()),
    ("FSQ", "stop head", "", ()),
    ("FSQ", "RALM", "", ()),
    ("FSQ", "sum", "h on the grid", ((7.35, 3), (7.35, 1.75), (8.4, 1.75))),
    ("RALM", "sum", "", ()),
    ("sum", "LocDiT", "μ", ()),
    ("past patches", "LocDiT", "the patch before", ((0, -1.65), (8.4, -1.65))),
    ("LocDiT", "next patch", "", ()),
    ("next patch", "AudioVAE", "", ()),
    ("AudioVAE", "speech", "", ()),
]


def edge(name, towards):
    """Where a line from a box to a point leaves the box."""
    x, y, *_ = BOXES[name]
    width, height = SIZE[0] / 2, SIZE[1] / 2
    dx, dy = towards[0] - x, towards[1] - y
    scale = min(width / abs(dx) if dx else float("inf"), height / abs(dy) if dy else float("inf"))
    return x + dx * scale, y + dy * scale


@plots.styled
def draw():
    """The picture of all boxes and arrows."""
    figure = plots.Picture(figsize=(plots.WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    for start, end, label, corners in ARROWS:
        inner = list(corners)
        points = [edge(start, inner[0] if inner else BOXES[end][:2]), *inner]
        points.append(edge(end, points[-1] if inner else BOXES[start][:2]))
        axes.plot(*zip(*points[:-1], strict=True), color=plots.INK, linewidth=1.1)
        axes.annotate("", points[-1], points[-2], arrowprops=dict(arrowstyle="-|>", color=plots.INK, linewidth=1.1, shrinkA=0, shrinkB=0))
        (x0, y0), (x1, y1) = max(
            zip(points, points[1:], strict=False), key=lambda line: abs(line[0][0] - line[1][0]) + abs(line[0][1] - line[1][1])
        )
        axes.text((x0 + x1) / 2 + 0.06, (y0 + y1) / 2 + 0.1, label, fontsize=8, ha="center" if y0 == y1 else "left")
    for name, (x, y, does, notebook, colour) in BOXES.items():
        corner = x - SIZE[0] / 2, y - SIZE[1] / 2
        style = dict(boxstyle="round,pad=0,rounding_size=0.1", facecolor=plots.GROUND, edgecolor=plots.COLOURS[colour], linewidth=2)
        axes.add_patch(FancyBboxPatch(corner, *SIZE, zorder=3, **style))
        axes.text(x, y + 0.16, name, ha="center", va="center", fontsize=9, fontweight="bold", zorder=4)
        axes.text(x, y - 0.02, does, ha="center", va="center", fontsize=6.3, zorder=4)
        axes.text(x, y - 0.2, notebook, ha="center", va="center", fontsize=6.3, color="#555555", zorder=4)
    axes.set(xlim=(-0.95, 9.35), ylim=(-1.95, 3.55))
    axes.axis("off")
    return figure


def main():
    made = {"command": "python figures/figure1.py", "after": "Figure 1 of arXiv 2509.24650, redrawn", "vox": vox.__version__}
    boxes = {name: {"does": does, "notebook": notebook} for name, (_, _, does, notebook, _) in BOXES.items()}
    arrows = [{"from": start, "to": end, "carries": label} for start, end, label, _ in ARROWS]
    plots.save(draw(), HERE / "figure1.png", data={"made": made, "boxes": boxes, "arrows": arrows})


if __name__ == "__main__":
    main()
