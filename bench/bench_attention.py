"""pytest-benchmark of attention: a group per function and shape, a bar per library.

One thread each, because the libraries share a process here; `compare.py` is the measurement to quote.
"""

import peers
import pytest
import shapes

CASES = shapes.select(families=shapes.ATTENTION)


@pytest.mark.parametrize("name", peers.meant_for(shapes.ATTENTION))
@pytest.mark.parametrize(("family", "shape"), CASES, ids=[f"{family}-{shape.name}" for family, shape in CASES])
def test_speed(measure, family, shape, name):
    measure(family, shape, name)
