"""The table of functions is whole: what is not in it would miss the tests of memory, arrays, forks and environments.

And the public functions show signatures that a person can read.
"""

import pydoc
import re
import typing

import functions
import numpy as np
import pytest

import fastsoftmax
from fastsoftmax import reference


def test_the_table_has_every_public_function_of_arrays():
    assert set(functions.FUNCTIONS) == set(fastsoftmax.__all__) - functions.NOT_OF_ARRAYS
    assert set(fastsoftmax.__all__) >= functions.NOT_OF_ARRAYS


@pytest.mark.parametrize("name", functions.FUNCTIONS)
def test_every_function_has_samples_and_a_reference(name):
    assert functions.FUNCTIONS[name].samples
    assert callable(getattr(reference, name))


@pytest.mark.parametrize("label", functions.SAMPLES)
def test_samples_write_to_the_operands_that_they_say(label):
    """And to no other: a wrong role would have a test look at the wrong bytes."""
    name, sample = functions.SAMPLES[label]
    seen = []

    def place(operand, values):
        seen.append((operand, values, values.copy()))
        return values

    got = functions.results(getattr(fastsoftmax, name)(**functions.arguments(sample, np.float32, place)))
    assert all(y.size for y in got)
    for operand, now, before in seen:
        assert operand.is_written != np.array_equal(now, before)


@pytest.mark.parametrize("name", [name for name in fastsoftmax.__all__ if callable(getattr(fastsoftmax, name))])
def test_help_shows_the_annotations_as_they_are_written(name):
    """`x: ArrayLike` and not its expansion; Python before 3.14 puts it in quotes."""
    function = getattr(fastsoftmax, name)
    text = pydoc.render_doc(function, renderer=pydoc.plaintext)
    assert "_SupportsArray" not in text and "Union[" not in text
    if name in functions.FUNCTIONS:
        first = r"\b(x|a|scores|query|outputs|grad|logits|hidden)"
        assert re.search(first + r": '?(ArrayLike|Scores|Iterable\[ArrayLike\])", text)
        typing.get_type_hints(function)         # the names are there
