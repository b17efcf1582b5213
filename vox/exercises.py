"""Exercises of a notebook: `show` a solution, `check` an answer. The solutions lie in `notebooks/solutions/`, one module a notebook.

For exercise k such a module has `exercise_k()`, whose docstring is a hint and which returns the reference answer, and
`check_k(answer)`, which raises AssertionError with a message that helps.

>>> ex = Exercises("03_fsq")
>>> ex.check(1, answer)
exercise 1: not yet: 19 levels reach from -1 to 1, yours from -0.9
"""

import inspect
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from vox import files


class Exercises:
    """The exercises of one notebook, by its name ("03_fsq"). `len` says how many there are."""

    def __init__(self, name: str, folder: Path = files.HOME / "notebooks" / "solutions"):
        self.name, path = name, Path(folder) / f"{name}.py"
        if not path.is_file():
            there = ", ".join(sorted(other.stem for other in Path(folder).glob("[0-9]*.py"))) or "none"
            raise ValueError(f"there are no solutions for {name!r}; there are some for: {there}")
        spec = spec_from_file_location(f"solutions_{name}", path)
        self.module = module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.numbers = sorted(int(found[1]) for key in vars(self.module) if (found := re.fullmatch(r"exercise_(\d+)", key)))
        for k in self.numbers:
            if not hasattr(self.module, f"check_{k}"):
                raise ValueError(f"{name} has no check_{k} beside its exercise_{k}: write one in {path.name}")

    def __len__(self):
        return len(self.numbers)

    def _function(self, kind, k):
        if k not in self.numbers:
            raise ValueError(f"{self.name} has no exercise {k}; it has {', '.join(map(str, self.numbers)) or 'none'}")
        return getattr(self.module, f"{kind}_{k}")

    def hint(self, k: int):
        """Print what helps with exercise k without giving it away."""
        print(inspect.getdoc(self._function("exercise", k)))

    def show(self, k: int):
        """Display the source of a solution of exercise k."""
        from IPython.display import Code, display

        display(Code(inspect.getsource(self._function("exercise", k)).rstrip(), language="python"))

    def check(self, k: int, answer):
        """Print whether `answer` solves exercise k, or what is wrong with it. None or ... is a stub nobody has filled in yet."""
        print(f"exercise {k}: {self._verdict(self._function('check', k), answer)}")

    def _verdict(self, check, answer):
        if answer is None or answer is ...:
            return "still to do"
        try:
            check(answer)
        except AssertionError as error:
            return f"not yet: {error}"
        except Exception as error:  # the answer is not even of the kind that was asked for
            return f"not yet: it could not be checked ({type(error).__name__}: {error})"
        return "right"
