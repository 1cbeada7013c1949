"""Every kernel test runs for each (dtype, ISA) in the build's own table that this CPU supports."""

from types import SimpleNamespace

import helpers
import numpy as np
import pytest
from helpers import NUMPY, wide

from fastsoftmax import _dispatch


def pytest_configure(config):
    helpers.pytest_config = config


KERNELS = _dispatch.modules(_dispatch.supported())


@pytest.fixture(scope="module", autouse=True)
def caches(request):
    """Exact results that a file's tests share are let go with it: gigabytes, which would make forks slow."""
    yield
    for made in vars(request.module).values():
        if hasattr(made, "cache_clear") and made.__module__ == request.module.__name__:
            made.cache_clear()


@pytest.fixture(params=KERNELS, ids=["-".join(k) for k in KERNELS])
def kernel(request):
    """The kernels under test, in use while the test runs: tag, isa, dtype, wide (the oracle's type), lanes, eps."""
    tag, isa = request.param
    with _dispatch.using(isa):
        eps = {"f32": 2.0**-23, "f64": 2.0**-52, "f16": 2.0**-10, "bf16": 2.0**-7}[tag]
        yield SimpleNamespace(
            tag=tag,
            isa=isa,
            dtype=np.dtype(NUMPY[tag]),
            wide=wide(NUMPY[tag]),
            eps=eps,
            lanes=_dispatch.kernels(tag).lanes,
        )
