"""The table of functions is whole: what is not in it would miss the tests of memory, arrays, forks and environments."""

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
