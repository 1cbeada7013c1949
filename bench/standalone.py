"""Two files of the package as modules of their own: the worker protocol, and the functions as a NumPy user writes them.

They are loaded by their path. A process that measures another library must not import fastsoftmax, whose threads it
would then hold, and an older commit of fastsoftmax may have neither file.
"""

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "fastsoftmax" / "_selfcheck"


def load(name):
    """A file of FOLDER, as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


numpy_baseline, turns = load("numpy_baseline"), load("turns")
