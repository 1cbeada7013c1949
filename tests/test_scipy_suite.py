"""SciPy's own tests of softmax, log_softmax and logsumexp, from the installed SciPy, run against our functions."""

import importlib.util

import numpy as np
import pytest
from helpers import foreign_marks

import fastsoftmax

scipy = pytest.importorskip("scipy", reason="SciPy is not installed: its test suite cannot be run")

# name of a test, with its parameters as pytest prints them -> why our result differs.
EXCEPTIONS: dict[str, str] = {}
# Tests that do not call the functions under test.
NOT_OURS = {"test_wrap_radians"}


def _load():
    """A private copy of the installed test module in which the three functions are ours."""
    spec = importlib.util.find_spec("scipy.special.tests")
    spec = spec and importlib.util.find_spec("scipy.special.tests.test_logsumexp")
    if spec is None:
        pytest.skip(f"SciPy {scipy.__version__} was installed without its tests", allow_module_level=True)
    private = importlib.util.spec_from_file_location("scipy_test_logsumexp", spec.origin)
    module = importlib.util.module_from_spec(private)
    with foreign_marks():  # they choose between array libraries other than NumPy, and do nothing here
        private.loader.exec_module(module)  # the marks need SciPy's functions, so ours come in afterwards
    for name in ("softmax", "log_softmax", "logsumexp"):
        assert hasattr(module, name), f"SciPy {scipy.__version__} no longer tests {name} here"
        setattr(module, name, getattr(fastsoftmax, name))
    return module


_suite = _load()
_ran: set[str] = set()
globals().update({n: v for n, v in vars(_suite).items() if n.lower().startswith("test") and n not in NOT_OURS})


@pytest.fixture
def xp():
    """The array library of SciPy's tests: here, NumPy alone."""
    from scipy._lib._array_api import array_namespace

    return array_namespace(np.empty(0))


@pytest.fixture
def devices():
    return ["cpu"]


@pytest.fixture(autouse=True)
def _expect_listed_exceptions(request):
    name = request.node.name
    if name in EXCEPTIONS:
        request.node.add_marker(pytest.mark.xfail(strict=True, reason=EXCEPTIONS[name]))
    _ran.add(name)


def test_marks_of_another_release_are_registered_and_ours_stay_strict():
    with foreign_marks():
        assert pytest.mark.of_a_release_to_come(1).name == "of_a_release_to_come"
    with pytest.raises(pytest.fail.Exception, match="not found in `markers`"):
        pytest.mark.misspelt  # noqa: B018


def test_zz_the_suite_ran_and_every_exception_is_in_it(request):
    ours = {i.name for i in request.session.items if i.module is request.module and i is not request.node}
    assert len(ours) >= 20, f"only {len(ours)} of SciPy's tests were collected"
    assert _ran - {request.node.name} == ours or len(_ran) == 1, "some of SciPy's tests did not run"
    assert set(EXCEPTIONS) <= ours, f"listed but not in SciPy {scipy.__version__}: {set(EXCEPTIONS) - ours}"
