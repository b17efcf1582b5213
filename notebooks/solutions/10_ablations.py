"""Answers to the questions at the end of notebook 10. Its exercise is to add seeds."""

ANSWERS = (  # to the five questions at the end of the notebook, and where they stand
    "Drawing three values again gives back the same three, so their spread is seen too small by a factor of √(2/3) on average, and the "
    "quantiles of so few combinations end at the values themselves. Student's t of 4.3 pays for not knowing the deviation (section 2).",
    "In the loss the past is always the true recording, so no error can pile up, which is what a bottleneck is for; it could only take "
    "something away from what the plan may say. It did not side against it: without rounding the loss was higher in every seed, though "
    "no interval was clear of zero (section 3).",
    "The table of phases mixes a smaller learning rate, more training, as the run after the decay is also the longer one, and a batch "
    "twice as large. "
    "That of 24 and 30 layers mixes depth with the start from a language model, which only the 24 layers have (sections 4 and 5).",
    "When the default is already near the worst value, or near the best: then no variant has room to differ, however many seeds there "
    "are. The list of measures with little room left says so (section 2).",
    "Two of forty would be clear by chance, so three alone say next to nothing. Believe one if it is far from zero, if another "
    "measure agrees, or if more seeds confirm it (section 14).",
)
