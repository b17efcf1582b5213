"""Answers to the questions at the end of notebook 11. It has no exercises."""

ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "z holds the patch just heard, and that says something of what follows: a word lasts several patches, so the next one is often of the"
    " same word, and after four comes hundred (section 2). That is a guess, and no plan.",
    "Nothing yet. A random network keeps much of its input, mixes the past into the present and is handed the text, so a probe finds names"
    " there. Only the distance between the trained model and its random twin was learned (section 4).",
    "Theirs are error rates of whole texts on natural speech, ours shares of patches on a synthesiser's. The order of the boxes can be"
    " compared (section 7).",
    "Nothing from the distance: it changes with the perplexity. Count neighbours where the states live, in"
    " all dimensions (section 8).",
    "By RALM's: at the text it reads the states of TSLM, which nothing squeezes, and it brings the words into r, where they lie open and"
    " from where LocDiT gets them. A probe tells what a box holds, a lesion what this model uses (section 9).",
)
