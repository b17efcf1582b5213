"""Answers to the questions at the end of notebook 12. It has no exercises."""

ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "It ends in its first cells, with a line that names the parameters there are. papermill would only warn, set a variable that nobody"
    " reads, and let the job run all night with the default (section 1).",
    "minutes is where a run is cut, and a cut must not bend the schedule: in pieces or at once, it rises, stays and falls over the same"
    " steps (section 2).",
    "Weights, moments, averages and generators. All that is random about a step depends on the seed and on the step alone (section 6).",
    "In a phrase the words before say which word is likely, and the patch before says much about the next. In random order nothing but the"
    " text tells what comes (section 3).",
    "The KL term charges for each bit that a channel says. One whose share in the sound is worth less gives up: μ stands still, σ is that"
    " of plain noise. VoxCPM would have to learn to draw it at the same price as one that speaks (section 4).",
)
