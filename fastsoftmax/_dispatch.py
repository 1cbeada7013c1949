"""Chooses the instruction set once, at import, and hands out the kernel modules."""

import contextlib
import importlib
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

try:
    from fastsoftmax import _cpu, _fastpath, _openmp, _thread_pool  # noqa: F401  (the last two before any kernel)
except ImportError as error:
    if importlib.util.find_spec("fastsoftmax._cpu") is not None:        # built, but it does not load
        raise
    raise ImportError(f"fastsoftmax has not been built in {Path(__file__).resolve().parent}; run "
                      "`python -m pip install -e .` in the folder that holds setup.py") from error

DTYPES = _cpu.dtypes

_modules = {}
_isa = None


def built():
    """The instruction sets of this build, from the plainest to the best."""
    return _cpu.isas_built


def supported():
    """The instruction sets of this build that this CPU supports."""
    return tuple(isa for isa in _cpu.isas_built if _cpu.supports(isa))


def modules(isas):
    """(dtype, instruction set) of the modules of this build, for these instruction sets."""
    return [(tag, isa) for tag in DTYPES for isa in isas if f"{tag}_{isa}" in _cpu.modules_built]


def supported_by(tag):
    """The instruction sets that this CPU supports and that have a module of this dtype of their own."""
    return [isa for dtype, isa in modules(supported()) if dtype == tag]


def load(tag, isas):
    """The kernels of a dtype for the last of the instruction sets that has a module of it.

    A module that holds attention alone is completed by that of the instruction set before it.
    """
    names = [f"{tag}_{isa}" for isa in isas if f"{tag}_{isa}" in _cpu.modules_built]
    best = importlib.import_module(f"fastsoftmax.kernels.{names[-1]}")
    if hasattr(best, "softmax_rows"):
        return best
    return SimpleNamespace(**{**vars(load(tag, isas[:-1])), **vars(best)})


def isa():
    """The instruction set in use. What has no module of it uses the one before."""
    return _isa


def kernels(tag):
    """The kernel module of a dtype ("f32", "f64", "f16", "bf16") for the instruction set in use."""
    return _modules[tag]


def use(name):
    """Load the kernels of one instruction set: the only place where a kernel module is imported."""
    global _modules, _isa
    if name not in supported():
        reason = "is not supported by this CPU" if name in built() else (
            "is unknown or not part of this build" if name else "is empty")
        raise ImportError(f"FASTSOFTMAX_ISA={name!r} {reason}; supported here: {', '.join(supported())}")
    isas = supported()[:supported().index(name) + 1]
    loaded = {tag: load(tag, isas) for tag in DTYPES}
    _modules, _isa = loaded, name
    _fastpath.use(*((m.contiguous_address, m.causal_address, m.causal_mask_address)
                    for m in (loaded[tag] for tag in ("f16", "bf16", "f32", "f64"))))


@contextlib.contextmanager
def using(name):
    """For tests: the instruction set in use while the block runs, in this process."""
    before = _isa
    use(name)
    try:
        yield
    finally:
        use(before)


use(os.environ.get("FASTSOFTMAX_ISA", supported()[-1]))
