"""Answers to the questions at the end of notebook 07. It has no exercises."""

ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "At position i − 1, where patch i has not been heard: its μ for LocDiT, the patch before, and the plan that the stop head reads"
    " (section 4).",
    "The first one: it is planned at token 101, which is a text position, and FSQ squeezes only where there is audio (section 4).",
    "Many pairs of data and noise give the mixture that the model sees; the best answer is the mean of their velocities, and the variance"
    " around it remains. The stop loss is an ordinary classification, without such a floor (section 5).",
    "The diffusion loss near 2: who knows nothing says velocity 0, and E|z − x|² = 1 + 1 for data of unit variance. The stop loss near"
    " ln 2 ≈ 0.69, the price of tossing a coin between two classes (section 4).",
    "Whatever its latents do not hold: all other boxes live in them, so the AudioVAE is the ceiling of the sound. At nano, after a few"
    " minutes, harmonics and formants are missing (section 2).",
)
