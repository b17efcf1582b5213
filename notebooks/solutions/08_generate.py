"""Answers to the questions at the end of notebook 08. It has no exercises."""

ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "A causal model never changes its mind about the past: keys and values stay in the cache, and a step hands in one position. Attention"
    " over a few hundred past ones is little beside the weights that this position goes through (section 2).",
    "A cold decoder is most wrong where a patch begins, so at each seam the sound jumps from one error to another, and a jump contains all"
    " frequencies. Every convolution has to keep its last (kernel − 1) · dilation inputs (section 3).",
    "The words of the prompt, a full stop where they have none, the words to speak, the mark 101, the patches of the prompt; then come the"
    " new patches (section 4).",
    "Under CFG-Zero* the first step stands still. Guidance needs two velocities of each patch, one that knows μ and one that does not"
    " (section 5).",
    "What a call costs whatever is in it: Python, the call itself, reading the weights (section 6). It does not save arithmetic, such as"
    " that of the VAE's decoder, to which each sentence goes on its own (section 7).",
)
