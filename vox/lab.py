"""What a notebook needs to be a job: parameters that papermill cannot mistype, and the memory it took."""

import math
import sys
import types

import torch

NOT_PARAMETERS = ("In", "Out")  # what Jupyter keeps beside the reader's names
PLAIN = (str, int, float, bool, list, tuple, dict, types.NoneType)  # what papermill can inject


def check_parameters(namespace: dict, **rules) -> dict:
    """Refuse parameters that the notebook does not have, or whose values it cannot use. Call it in the cell after the parameters.

    papermill only warns of a mistyped name and injects it, and the run would go on with the default: so every plain value
    in `namespace`, the notebook's `globals()`, must have a rule. In a kernel that has passed once, names are not looked at
    again: by then the notebook has its own.

    Args: namespace; rules, for each parameter a type (str, bool, int, float; numbers are finite and not negative) or a
        collection of the values it may have.
    Returns the parameters. Raises ValueError naming a wrong one.
    """
    if not namespace.get("_parameters_checked"):
        names = {name for name, value in namespace.items() if isinstance(value, PLAIN) and not name.startswith("_")}
        unknown = sorted(names - set(rules) - set(NOT_PARAMETERS))
        if unknown:
            raise ValueError(f"unknown parameter {', '.join(map(repr, unknown))}: this notebook has {', '.join(rules)}")
    for name, rule in rules.items():
        value = namespace[name]
        if not isinstance(rule, type):
            if value not in tuple(rule):
                raise ValueError(f"{name} must be one of {', '.join(map(str, rule))}, not {value!r}")
            continue
        kinds = (int, float) if rule is float else (rule,)
        if not isinstance(value, kinds) or isinstance(value, bool) != (rule is bool):
            raise ValueError(f"{name} must be of type {rule.__name__}, not {value!r}")
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, not {value!r}")
    namespace["_parameters_checked"] = True
    return {name: namespace[name] for name in rules}


def peak_memory(device: torch.device) -> float:
    """The most gigabytes this process has held so far: of a GPU what torch allocated, else its resident memory (Linux, macOS)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
