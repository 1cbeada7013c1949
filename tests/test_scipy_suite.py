"""SciPy's own tests of softmax, log_softmax and logsumexp, from the installed SciPy, run against our functions."""

import functools
import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import foreign_marks

import fastsoftmax

scipy = pytest.importorskip("scipy", reason="SciPy is not installed: its test suite cannot be run")

# name of a test, with its parameters as pytest prints them -> why our result differs.
EXCEPTIONS: dict[str, str] = {}
# Tests that do not call the functions under test.
NOT_OURS = {"test_wrap_radians"}
FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
MODULES = ("test_logsumexp", "test_log_softmax")  # until SciPy 1.15 there were two
_called: set[str] = set()


def _ours(name):
    """Our function of that name, which says that it was called."""
    function = getattr(fastsoftmax, name)

    @functools.wraps(function)
    def call(*args, **kwargs):
        _called.add(name)
        return function(*args, **kwargs)

    return call


def _load(name):
    """A private copy of an installed test module in which the three functions are ours; None where there is none."""
    spec = importlib.util.find_spec("scipy.special.tests")
    spec = spec and importlib.util.find_spec(f"scipy.special.tests.{name}")
    if spec is None:
        return None
    private = importlib.util.spec_from_file_location(f"scipy_{name}", spec.origin)
    module = importlib.util.module_from_spec(private)
    with foreign_marks():  # they choose between array libraries other than NumPy, and do nothing here
        private.loader.exec_module(module)  # the marks need SciPy's functions, so ours come in afterwards
    ours = {function: _ours(function) for function in FUNCTIONS}
    for known, value in list(vars(module).items()):
        if known in ours:
            setattr(module, known, ours[known])
        elif value is scipy.special:
            setattr(module, known, SimpleNamespace(**{**vars(scipy.special), **ours}))
    return module


_suite = [module for module in map(_load, MODULES) if module]
if not _suite:
    pytest.skip(f"SciPy {scipy.__version__} was installed without its tests", allow_module_level=True)
for _module in _suite:  # its tests, and its fixtures
    _left_out = {*globals(), *NOT_OURS, "pytestmark"}
    globals().update({known: value for known, value in vars(_module).items() if known not in _left_out})
_ran: set[str] = set()


@pytest.fixture
def xp():
    """The array library of SciPy's tests: here, NumPy alone."""
    from scipy._lib._array_api import array_namespace

    return array_namespace(np.empty(0))


@pytest.fixture
def devices():
    return ["cpu"]


@pytest.fixture
def skip_xp_backends():
    """Of SciPy 1.15, as the next: whether the test is skipped for another array library than NumPy."""


@pytest.fixture
def xfail_xp_backends():
    pass


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
    assert _called == set(FUNCTIONS) or len(_ran) == 1, f"SciPy's tests called none but {_called}"
    assert set(EXCEPTIONS) <= ours, f"listed but not in SciPy {scipy.__version__}: {set(EXCEPTIONS) - ours}"
