"""The softmax family and attention for NumPy on CPUs: fast, and accurate to 2 ULP."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

# In a checkout Python finds this folder before the installed package: for `python -m fastsoftmax`, `python -m pytest`,
# `python -c ...`. If it has not been built in place, everything but this file comes from the installed one.
if PathFinder.find_spec("fastsoftmax._cpu", __path__) is None:
    _here = Path(__file__).resolve().parent.parent
    _installed = PathFinder.find_spec("fastsoftmax", [p for p in sys.path if Path(p).resolve() != _here])
    if _installed is None:
        raise ImportError(f"fastsoftmax: {_here} is its source, not built; python -m pip install {_here}")
    __path__[:] = _installed.submodule_search_locations or []
    del _here, _installed

from fastsoftmax import _dispatch  # noqa: E402, F401  (first: it checks the environment and loads the kernels)
from fastsoftmax._config import show_config
from fastsoftmax._threads import get_num_threads, num_threads, set_num_threads
from fastsoftmax._version import __version__
from fastsoftmax.attention import merge_attention_states, scaled_dot_product_attention
from fastsoftmax.softmax import (
    causal_mask_,
    causal_softmax,
    log_softmax,
    logsumexp,
    softmax,
    softmax_entropy,
)

__all__ = [
    "__version__",
    "causal_mask_",
    "causal_softmax",
    "get_num_threads",
    "log_softmax",
    "logsumexp",
    "merge_attention_states",
    "num_threads",
    "scaled_dot_product_attention",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_entropy",
]
