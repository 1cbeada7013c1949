"""Types of the public functions' arguments and results, and how their signatures are shown.

For type checkers a result is an array, though a 0-d one is a scalar; that of a reduction is Any, as in NumPy's stubs.
"""

import inspect
from collections.abc import Callable
from typing import Any, SupportsIndex, TypeVar

from numpy.typing import NDArray

Array = NDArray[Any]
Axis = SupportsIndex | tuple[SupportsIndex, ...] | None
Window = tuple[SupportsIndex | None, SupportsIndex | None]
Scores = TypeVar("Scores", bound=Array)
Function = TypeVar("Function", bound=Callable[..., Any])


def signature_without_dim(function: Function) -> Function:
    """Decorator: `help` does not show `dim`, PyTorch's name for axis, which exists only to be refused by name."""
    signature = inspect.signature(function)
    shown = [parameter for parameter in signature.parameters.values() if parameter.name != "dim"]
    vars(function)["__signature__"] = signature.replace(parameters=shown)
    return function
