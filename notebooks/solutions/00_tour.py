"""Answers to the questions at the end of the tour. It has no exercises."""

ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "A hash of each text decides whether training may see it. Both sentences belong to the split test, and only texts of the split train"
    " are trained on (section 1).",
    "A recording and its words: they stand before the text, as if the model had been speaking in this voice already. No part of it"
    " describes speakers (section 2).",
    "Stripes are the harmonics of a voice, clouds at the top hissing sounds, dark gaps the closures before a t or a k (section 1).",
    "The judge makes mistakes on true recordings, too, and they are in every figure that it gives: only what goes beyond them can be the"
    " model's (section 3).",
    "The TSLM plans, the RALM recovers what FSQ's squeeze has dropped, and LocDiT draws the patch from noise (section 5).",
)
