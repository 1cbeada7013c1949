"""Bad input: the type of the error, a message that names the fault, `out` untouched, the next call fine."""

import inspect
import re

import ml_dtypes
import numpy as np
import pytest
from functions import FUNCTIONS, SAMPLES, Operand, arguments

import fastsoftmax
from fastsoftmax import (
    causal_mask_,
    causal_softmax,
    cross_entropy,
    linear_cross_entropy,
    log_softmax,
    log_softmax_backward,
    logsumexp,
    logsumexp_backward,
    merge_attention_states,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    softmax,
    softmax_backward,
    softmax_entropy,
    softmax_entropy_backward,
)

X = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
FULL = (softmax, log_softmax)
REDUCING = (*FULL, logsumexp, softmax_entropy)
by_name = {"ids": lambda f: f.__name__}


@pytest.fixture(autouse=True)
def _input_unchanged_and_next_call_fine():
    before = X.copy()
    yield
    np.testing.assert_array_equal(X, before)
    np.testing.assert_allclose(softmax(X, 1).sum(1), 1, rtol=1e-15)
    np.testing.assert_allclose(logsumexp(X, 1), [3.40760596, 6.40760596])


def refuses(error, match, f, *args, **kwargs):
    """`f` raises, and an `out` given to it along with the fault keeps its content."""
    with pytest.raises(error, match=match) as caught:
        f(*args, **kwargs)
    assert type(caught.value) is error
    if f in FULL and args[0] is X:
        out = np.full(X.shape, 7.0)
        with pytest.raises(error, match=match):
            f(*args, **{"out": out, **kwargs})
        assert np.all(out == 7)


@pytest.mark.parametrize("f", REDUCING, **by_name)
def test_axis(f):
    for axis in (2, -3, (0, 2), (-3,)):
        refuses(np.exceptions.AxisError, "axis -?[23] is out of bounds for array of dimension 2", f, X, axis)
    for axis in ((0, 0), (1, -1)):
        refuses(ValueError, "(?i)(repeated|duplicate)", f, X, axis)
    for axis in (1.0, "1", (0, 1.0), [0.5]):
        refuses(TypeError, r"\bint", f, X, axis)


UNSUPPORTED = [
    np.array([1.0, None], object),
    np.array(["a", "bc"]),
    np.array([b"a"]),
    np.zeros(2, [("score", "f4")]),
    np.zeros(2, "M8[s]"),
    np.zeros(2, "m8[s]"),
    np.zeros(2, "V4"),
]


@pytest.mark.parametrize("f", (*REDUCING, causal_softmax), **by_name)
@pytest.mark.parametrize("x", UNSUPPORTED, ids=lambda x: x.dtype.str)
def test_unsupported_dtypes_are_named(f, x):
    x = np.broadcast_to(x, (2, x.size))
    kind = {"O": "object", "U": "<U2", "S": "S1", "M": "datetime64", "m": "timedelta64", "V": "score|V4|void"}[
        x.dtype.kind
    ]
    refuses(TypeError, kind, f, x)


@pytest.mark.parametrize("f", (*FULL, logsumexp, causal_softmax), **by_name)
def test_result_dtypes_that_are_not_floating(f):
    for dtype in (int, bool, "U3", object):
        refuses(TypeError, "dtype", f, X, dtype=dtype)


@pytest.mark.parametrize("f", (*FULL, logsumexp, causal_softmax), **by_name)
def test_real_results_of_complex_input(f):
    """Also where the item sizes are the same, complex64 and float64: there the imaginary part was once dropped."""
    for given, wanted in (("c8", "f4"), ("c8", "f8"), ("c16", "f4"), ("c16", "g"), ("c16", "f2")):
        refuses(TypeError, f"complex.*{np.dtype(wanted)}", f, X.astype(given), dtype=wanted)


@pytest.mark.parametrize("f", (*FULL, logsumexp, causal_softmax), **by_name)
def test_out(f):
    args = () if f is causal_softmax else (1,)
    right = f(X, *args).shape
    named = ", ".join(map(str, right))
    for shape in ((3,), (3, 2), (2, 3, 1), ()):
        out = np.full(shape, 7.0)
        refuses(ValueError, rf"(?s){named}", f, X, *args, out=out)
        assert np.all(out == 7)
    for dtype in (np.float32, np.int64, np.complex128, object):
        out = np.full(right, 7, dtype)
        refuses(TypeError, "float64", f, X, *args, out=out)
        assert np.all(out == 7)
    out = np.full(right, 7.0)
    out.flags.writeable = False
    refuses(ValueError, "(?i)read-?only|writ(e|a)able", f, X, *args, out=out)
    assert np.all(out == 7)
    refuses(TypeError, "(?i)out.*(array|list)", f, X, *args, out=[0.0, 0.0])


@pytest.mark.parametrize("f", (*FULL, softmax_entropy), **by_name)
def test_temperature(f):
    impossible = [0, 0.0, -1, -(10**400), np.longdouble("1e-4000"), np.nan, np.inf, -np.inf]
    for bad in (*impossible, np.array([[1.0], [0.0]]), np.array([[1.0], [np.nan]])):
        refuses(ValueError, "temperature", f, X, 1, temperature=bad)
    for bad in (np.ones(2), np.ones((3, 1)), np.ones(3), np.ones((1, 2, 1))):  # does not fit, or varies along the row
        refuses(ValueError, "temperature", f, X, 1, temperature=bad)
    for bad in ("1", 1j, [object()], None):
        refuses(TypeError, "temperature", f, X, 1, temperature=bad)


def test_temperature_of_causal_softmax():
    for bad in (0, -1, np.nan, np.inf, np.ones(3), np.zeros((2, 1))):
        refuses(ValueError, "temperature", causal_softmax, X, temperature=bad)
    refuses(TypeError, "temperature", causal_softmax, X, temperature=None)


@pytest.mark.parametrize("f", REDUCING, **by_name)
def test_where(f):
    for bad in (np.ones(3, int), [1, 0, 1], 1.0, np.ones(3, "U1")):
        refuses(TypeError, "where.*bool|bool.*where", f, X, 1, where=bad)
    for shape in ((2,), (3, 3), (4, 2, 3), (2, 4)):
        refuses(ValueError, "where", f, X, 1, where=np.ones(shape, bool))


@pytest.mark.parametrize("f", (*REDUCING, causal_softmax, causal_mask_), **by_name)
def test_masked_arrays_are_told_what_to_pass(f):
    masked = np.ma.masked_array(X, X > 4)
    advice = {causal_softmax: r"pass scores\.filled\(-inf\)", causal_mask_: r"pass scores\.data"}  # no `where` there
    refuses(TypeError, "masked array.*" + advice.get(f, r"pass (\w+)\.data and where=~\1\.mask"), f, masked)
    if f in advice:
        with pytest.raises(TypeError, match="^((?!where).)*$"):
            f(masked)
    np.testing.assert_array_equal(masked.data, X)


def test_an_empty_axis():
    for f in (*FULL, softmax_entropy):
        for shape, axis in (((0,), None), ((3, 0), 1), ((0, 3), 0), ((0, 3), None), ((2, 0, 3), (0, 1))):
            refuses(ValueError, "(?i)(empty|zero-size)", f, np.zeros(shape), axis)
    assert softmax(np.zeros((0, 3)), 1).shape == (0, 3)
    assert logsumexp([]) == -np.inf
    np.testing.assert_array_equal(logsumexp(np.zeros((3, 0), np.float32), 1), np.full(3, -np.inf, np.float32))
    assert logsumexp(np.zeros((0, 3)), 1).shape == (0,)
    for shape in ((3, 0), (0, 3), (0, 2, 2)):  # a query that sees no key has no weights either
        for dtype in (np.float32, np.longdouble, complex):
            y = causal_softmax(np.zeros(shape, dtype))
            assert y.shape == shape
            assert y.dtype == dtype


def sharing(shape, dtype):
    """Writeable arrays of this shape of which two elements, at least, share memory."""
    memory = np.full(400, 7, dtype)
    size = memory.itemsize
    for strides in ((0, size), (size, 0), (size, size), (0, 0), (-size, size), (size, 2 * size)):
        start = memory[200:]
        yield np.lib.stride_tricks.as_strided(start, shape, (*([40 * size] * (len(shape) - 2)), *strides))


def test_out_with_elements_that_share_memory():
    """The last row would stand in all places, whatever the others are."""
    for dtype in (np.float32, np.float64, np.float16):
        x = np.arange(9, dtype=dtype).reshape(3, 3)
        for out in sharing(x.shape, dtype):
            for f, args in ((softmax, (x, 1)), (log_softmax, (x, 0)), (causal_softmax, (x,)), (softmax, (x, None)),
                            (logsumexp, (np.stack([x, x]), 0)), (softmax, (x.astype(np.longdouble), 1))):
                with pytest.raises(ValueError, match="elements of out share memory"):
                    f(*args, **{"out": out, **({"dtype": dtype} if args[0].dtype != dtype else {})})
            with pytest.raises(ValueError, match="share memory"):
                causal_mask_(out)
            assert np.all(out == 7)
    query = np.ones((2, 4, 3, 8), np.float32)
    for out in sharing(query.shape, np.float32):
        for kwargs in ({}, {"is_causal": True, "window": (1, 0)}):
            with pytest.raises(ValueError, match="elements of out share memory"):
                scaled_dot_product_attention(query, query, query, out=out, **kwargs)
        assert np.all(out == 7)


def test_out_with_interleaved_elements_of_its_own():
    """Steps over each other, yet no place twice: taken."""
    x = np.arange(6.0).reshape(2, 3)
    memory = np.zeros(20)
    for strides in ((8, 16), (24, 16), (-8, 16), (16, -24)):
        out = np.lib.stride_tricks.as_strided(memory[10:], (2, 3), strides)
        places = {i * strides[0] + j * strides[1] for i in range(2) for j in range(3)}
        if len(places) == 6:
            np.testing.assert_array_equal(softmax(x, 1, out=out), softmax(x, 1))
        else:
            refuses(ValueError, "share memory", softmax, x, 1, out=out)
    one = np.lib.stride_tricks.as_strided(memory, (1, 3), (0, 8))           # one row: its stride says nothing
    np.testing.assert_array_equal(softmax(x[:1], 1, out=one), softmax(x[:1], 1))


def test_what_a_torch_user_types_is_answered():
    for f in REDUCING:
        refuses(TypeError, "pass axis=1", f, X, dim=1)
        refuses(TypeError, "pass axis=-1", f, X, None, dim=-1)
        assert "dim" not in inspect.signature(f).parameters
    for f, args in ((softmax_backward, (X, X)), (log_softmax_backward, (X, X)), (logsumexp_backward, (X[0], X, X[0])),
                    (softmax_entropy_backward, (X[0], X)), (cross_entropy, (X, TARGET)),
                    (merge_attention_states, (X[None], X[None, :, 0]))):
        refuses(TypeError, "pass axis=1", f, *args, dim=1)
        assert "dim" not in inspect.signature(f).parameters
    for f in (softmax, log_softmax, softmax_entropy):
        refuses(ValueError, r"positive and finite, got 0\.0; .*argmax", f, X, 1, temperature=0)
        refuses(ValueError, "argmax", f, X, 1, temperature=[[1.0], [0.0]])


def array_operands(function):
    """(sample, name of the operand, its place in a list or None): each argument of which the function reads an array,
    once."""
    seen = set()
    for name, sample in SAMPLES.values():
        for argument, value in sample.items() if name == function else ():
            operand, place = (value[-1], len(value) - 1) if isinstance(value, list) else (value, None)
            if isinstance(operand, Operand) and not operand.is_written and argument not in seen:
                seen.add(argument)
                yield sample, argument, place


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name != "causal_mask_"])
def test_torch_tensors_that_numpy_does_not_take(function):
    torch = pytest.importorskip("torch", reason="torch is not installed: its tensors are not refused")
    for sample, argument, place in array_operands(function):
        given = arguments(sample, np.float32)

        def refused(match, tensor, given=given, argument=argument, place=place):
            value = tensor if place is None else [*given[argument][:place], tensor]
            with pytest.raises(TypeError, match=f"{argument}.* is a torch tensor that {match}"):
                getattr(fastsoftmax, function)(**{**given, argument: value})

        tensor = torch.from_numpy(np.array(given[argument] if place is None else given[argument][place]))
        if tensor.is_floating_point():
            refused("requires grad: use fastsoftmax.torch", tensor.clone().requires_grad_())
            refused("is bfloat16.*: use fastsoftmax.torch", tensor.bfloat16())
        refused("NumPy does not take.*fastsoftmax.torch", tensor.to("meta"))


@pytest.mark.parametrize("f", [causal_softmax, causal_mask_], **by_name)
def test_causal_arguments(f):
    for shape in ((), (3,)):
        refuses(ValueError, "(?i)dimension", f, np.zeros(shape))
    for offset in (1.0, "1", None, [1]):
        refuses(TypeError, "offset|integer", f, X.copy(), offset=offset)


def test_causal_mask_takes_an_array_it_can_write():
    refuses(TypeError, "(?i)array", causal_mask_, [[1.0, 2.0], [3.0, 4.0]])
    frozen = X.copy()
    frozen.flags.writeable = False
    refuses(ValueError, "(?i)read-?only|writ(e|a)able", causal_mask_, frozen)
    refuses(TypeError, "int64", causal_mask_, np.zeros((2, 2), np.int64))
    refuses(TypeError, "datetime64", causal_mask_, np.zeros((2, 2), "M8[s]"))


def test_logsumexp_b_that_does_not_fit():
    refuses(ValueError, "(?i)(broadcast|shape|b )", logsumexp, X, 1, np.ones((3, 3)))
    refuses(TypeError, "<U1", logsumexp, X, 1, np.array(["a"]))


def test_everything_behind_the_star_is_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        softmax(X, 1, 2.0)
    with pytest.raises(TypeError, match="positional"):
        causal_softmax(X, 0)
    with pytest.raises(TypeError, match="unexpected"):
        softmax(X, axes=1)
    assert fastsoftmax.softmax is softmax


# ---------------------------------------------------------------- gradients

ROWS = np.ones(2)
BACKWARD = {            # function -> its operands, grad first, that fit along axis 1
    softmax_backward: {"grad": X, "y": X},
    log_softmax_backward: {"grad": X, "log_y": X},
    logsumexp_backward: {"grad": ROWS, "a": X, "lse": ROWS},
    softmax_entropy_backward: {"grad": ROWS, "x": X},
}
backward = pytest.mark.parametrize("f", BACKWARD, **by_name)


def gradient_refuses(error, match, f, axis=1, out=(2, 3), **changes):
    """Also with an out, whose content stays."""
    for out_ in (None, np.full(out, 7.0)):
        with pytest.raises(error, match=match) as caught:
            f(**{**BACKWARD[f], "axis": axis, "out": out_, **changes})
        assert type(caught.value) is error
        assert out_ is None or np.all(out_ == 7)


@backward
def test_gradient_operands(f):
    for name, operand in BACKWARD[f].items():
        for bad in UNSUPPORTED:
            gradient_refuses(TypeError, f"{name} must be.*", f, **{name: np.broadcast_to(bad, (2, bad.size))})
        gradient_refuses(TypeError, f"{name} is a masked array; pass {name}", f, **{name: np.ma.masked_array(operand)})
        gradient_refuses(TypeError, "complex128", f, **{name: operand.astype(complex)})
        if name not in ("a", "x"):                      # the forward functions take integers, and return none
            for dtype in (int, bool, np.uint8):
                gradient_refuses(TypeError, f"{name} must be floating.*{np.dtype(dtype)}", f,
                                 **{name: operand.astype(dtype)})
    first, *_ = [name for name in BACKWARD[f] if name != "grad"]
    for shape in ((3,), (2, 3, 1), (2, 1), (1, 3), (), (3, 2)):
        gradient_refuses(ValueError, rf"grad of shape {re.escape(str(shape))}.*{first} of shape \(2, 3\).*must be", f,
                         grad=np.ones(shape))


@backward
def test_gradient_options(f):
    for axis in (2, -3, (0, 2)):
        gradient_refuses(np.exceptions.AxisError, "axis -?[23] is out of bounds", f, axis)
    gradient_refuses(ValueError, "duplicate", f, (0, 0))
    gradient_refuses(TypeError, r"\bint", f, 1.0)
    if f is not logsumexp_backward:
        for bad in (0, -1.0, np.nan, np.inf, np.ones(3), np.zeros((2, 1))):
            gradient_refuses(ValueError, "temperature", f, temperature=bad)
        gradient_refuses(TypeError, "temperature", f, temperature=None)
    if "where" in inspect.signature(f).parameters:
        gradient_refuses(TypeError, "where.*bool", f, where=np.ones(3))
        gradient_refuses(ValueError, "where", f, where=np.ones((3, 3), bool))
    for out, error, match in (
            (np.ones(3), ValueError, r"out must have shape \(2, 3\), got \(3,\)"),
            (np.ones((3, 2)), ValueError, r"out must have shape \(2, 3\), got \(3, 2\)"),
            (np.full((2, 3), 7, np.float32), TypeError, "out must have dtype float64.*float32"),
            ([1.0], TypeError, "out must be an ndarray, got list"),
            (np.broadcast_to(7.0, (2, 3)), ValueError, "read-only"),
            (next(sharing((2, 3), np.float64)), ValueError, "elements of out share memory")):
        with pytest.raises(error, match=match):
            f(**BACKWARD[f], axis=1, out=out)


def test_gradients_of_logsumexp_and_entropy_have_the_shape_of_rows():
    for shape in ((2, 1), (3,), ()):
        gradient_refuses(ValueError, r"lse of shape.*\(2, 3\).*keepdims=False is \(2,\)", logsumexp_backward,
                         lse=np.ones(shape))
    gradient_refuses(ValueError, r"lse of shape \(2,\).*keepdims=True is \(2, 1\)", logsumexp_backward, keepdims=True)
    with pytest.raises(ValueError, match="empty"):
        softmax_entropy_backward(np.ones(3), np.ones((3, 0)), 1)
    with pytest.raises(TypeError, match="positional"):
        softmax_backward(X, X, 1, 2.0)


# ---------------------------------------------------------------- losses

TARGET = [0, 2]


def loss_refuses(error, match, logits=X, target=TARGET, axis=-1, **options):
    """Also with a grad_into, whose content stays."""
    for into in (None, np.full((2, 3), 7.0)):
        with pytest.raises(error, match=match) as caught:
            cross_entropy(logits, target, axis, **{"grad_into": into, **options})
        assert type(caught.value) is error
        assert into is None or np.all(into == 7)
    np.testing.assert_allclose(cross_entropy(X, TARGET), 1.40760596)


def test_losses_refuse_arrays():
    for bad in UNSUPPORTED:
        loss_refuses(TypeError, "logits must be", np.broadcast_to(bad, (2, bad.size)))
        loss_refuses(TypeError, "target must be", target=np.broadcast_to(bad, 2))
    loss_refuses(TypeError, "complex128", X.astype(complex))
    for bad in ([True, False], [1j, 0j]):
        loss_refuses(TypeError, "target must be class numbers.*or probabilities", target=bad)
    for name, array in (("logits", X), ("target", np.array(TARGET)), ("weight", np.ones(3))):
        loss_refuses(TypeError, f"{name} is a masked array; pass {name}", **{name: np.ma.masked_array(array)})
    for shape in ((3,), (2, 1), (2, 3), ()):
        loss_refuses(ValueError, r"target of shape.*logits of shape \(2, 3\).*class numbers have shape \(2,\)",
                     target=np.zeros(shape, int))
    for shape in ((2,), (3, 2), (2, 3, 1)):
        loss_refuses(ValueError, r"target of shape.*logits of shape \(2, 3\): probabilities have their shape",
                     target=np.zeros(shape))
    loss_refuses(TypeError, "weight must be floating, got dtype int64", weight=np.ones(3, int))
    for shape in ((2,), (3, 1), ()):
        loss_refuses(ValueError, r"weight of shape.*3 classes.*\(3,\)", weight=np.ones(shape))
    for axis in (2, -3):
        loss_refuses(np.exceptions.AxisError, "out of bounds", axis=axis)
    for axis in (1.0, None, (1,)):
        loss_refuses(TypeError, r"\bint", axis=axis)
    with pytest.raises(np.exceptions.AxisError):
        cross_entropy(1.0, 0)
    with pytest.raises(ValueError, match="no classes"):
        cross_entropy(np.zeros((2, 0)), [0, 0])


def test_losses_refuse_options():
    for bad in ("average", "Mean", None, 1, ["mean"]):
        loss_refuses(ValueError, "reduction must be one of 'mean', 'sum', 'none'; got", reduction=bad)
    for bad in (-0.1, 1.5, np.nan):
        loss_refuses(ValueError, f"label_smoothing must be from 0 to 1, got {bad}", label_smoothing=bad)
    for bad in (-1, np.inf, np.nan):
        loss_refuses(ValueError, "z_loss", z_loss=bad)
    for bad in (0, -1, np.inf, np.nan):
        loss_refuses(ValueError, "softcap.*positive", softcap=bad)
        loss_refuses(ValueError, "temperature.*positive", temperature=bad)
    for name in ("label_smoothing", "z_loss", "softcap"):
        for bad in ("1", [0.5], 1j, True):
            loss_refuses(TypeError, name, **{name: bad})
    for bad in (1.0, "1", None, True):
        loss_refuses(TypeError, "ignore_index must be an int", ignore_index=bad)
    for shape in ((3,), (1, 3), (2, 3)):
        loss_refuses(ValueError, "temperature", temperature=np.ones(shape))
    loss_refuses(TypeError, "temperature", temperature=None)


def test_losses_refuse_grad_into():
    frozen = np.full((2, 3), 7.0)
    frozen.flags.writeable = False
    for into, error, match in (
            (np.full((2, 3), 7, np.float32), TypeError, "grad_into must have dtype float64, got float32"),
            ([[1.0]], TypeError, "grad_into must be an ndarray, got list"),
            (frozen, ValueError, "grad_into is read-only"),
            (np.full((3, 2), 7.0), ValueError, r"grad_into must have shape \(2, 3\), got \(3, 2\)"),
            (next(sharing((2, 3), np.float64)), ValueError, "elements of grad_into share memory")):
        with pytest.raises(error, match=match):
            cross_entropy(X, TARGET, grad_into=into)
        assert isinstance(into, list) or np.all(into == 7)


def test_linear_losses_refuse():
    hidden, weight = np.ones((2, 4)), np.ones((3, 4))

    def refused(error, match, hidden=hidden, weight=weight, target=TARGET, **options):
        with pytest.raises(error, match=match) as caught:
            linear_cross_entropy(hidden, weight, target, **options)
        assert type(caught.value) is error

    refused(ValueError, r"linear_weight of shape \(3, 5\) does not fit hidden of shape \(2, 4\): .*5 and 4",
            weight=np.ones((3, 5)))
    for shape in ((4,), (1, 2, 4)):
        refused(ValueError, r"hidden must have two dimensions \(N, D\)", np.ones(shape))
        refused(ValueError, r"linear_weight must have two dimensions \(V, D\)", weight=np.ones(shape))
    refused(ValueError, r"linear_bias of shape \(2,\) does not fit linear_weight of shape \(3, 4\)",
            linear_bias=[1.0, 2])
    refused(ValueError, "no classes", weight=np.ones((0, 4)))
    for name in ("hidden", "weight", "linear_bias"):
        for bad in (np.ones((2, 4), int), np.ones((2, 4), complex), np.ones((2, 4), object)):
            refused(TypeError, str(bad.dtype), **{name: bad})
    refused(ValueError, r"target of shape \(3,\).*logits of shape \(2, 3\)", target=[0, 1, 2])
    refused(IndexError, r"target\[1\] is class 3", target=[0, 3])
    refused(TypeError, "bool", target=[True, False])
    for name, bad in (("label_smoothing", 2.0), ("z_loss", -1.0), ("softcap", 0.0), ("reduction", "all")):
        refused(ValueError, name, **{name: bad})


# ---------------------------------------------------------------- attention

QUERY, KEY, VALUE = np.ones((2, 4, 3, 8)), np.ones((2, 2, 5, 8)), np.ones((2, 2, 5, 6))
OUT = (2, 4, 3, 6)


def attention_refuses(error, match, query=QUERY, key=KEY, value=VALUE, **kwargs):
    """Also with an out, whose content stays."""
    for out in (None, np.full(OUT, 7.0)):
        with pytest.raises(error, match=match) as caught:
            scaled_dot_product_attention(query, key, value, **{"enable_gqa": True, "out": out, **kwargs})
        assert type(caught.value) is error
        assert out is None or np.all(out == 7)
    np.testing.assert_allclose(scaled_dot_product_attention(QUERY, KEY, VALUE, enable_gqa=True), 1)


def shapes(a, b):
    return rf"{re.escape(str(a))}.*{re.escape(str(b))}"


def test_attention_shapes_that_do_not_fit():
    def refused(match, *wanted, **kwargs):
        attention_refuses(ValueError, match, *map(np.ones, wanted), **kwargs)

    for q, k, v, a, b in (
        ((2, 4, 3, 8), (2, 2, 5, 7), (2, 2, 5, 6), "query", "key"),         # width
        ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 4, 6), "key", "value"),         # keys
        ((2, 4, 3, 8), (3, 2, 5, 8), (3, 2, 5, 6), "query", "key"),         # batch
        ((2, 4, 3, 8), (1, 2, 5, 8), (3, 2, 5, 6), "query", "value"),
        ((1, 4, 3, 8), (2, 2, 5, 8), (3, 2, 5, 6), "key", "value"),
        ((2, 4, 3, 8), (2, 3, 5, 8), (2, 3, 5, 6), "query", "key"),         # heads
        ((2, 4, 3, 8), (2, 1, 5, 8), (2, 3, 5, 6), "query", "value"),
        ((2, 4, 3, 8), (2, 2, 5, 8), (2, 4, 5, 6), "key", "value"),
        ((2, 2, 3, 8), (2, 4, 5, 8), (2, 4, 5, 6), "query", "key"),
        ((4, 3, 8), (3, 5, 8), (3, 5, 6), "query", "key"),
    ):
        named = dict(query=q, key=k, value=v)
        refused(rf"{a} of shape {re.escape(str(named[a]))}.*{b} of shape {re.escape(str(named[b]))}", q, k, v)
    refused("query.*key.*enable_gqa", (2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 6), enable_gqa=False)
    refused("query.*two dimensions", (8,), (5, 8), (5, 6))
    refused("key.*two dimensions", (3, 8), (8,), (5, 6))
    refused("value.*two dimensions", (3, 8), (5, 8), ())


@pytest.mark.parametrize("number, name", [(0, "query"), (1, "key"), (2, "value")])
def test_attention_dtypes(number, name):
    arrays = [QUERY, KEY, VALUE]

    def refused(match, x):
        attention_refuses(TypeError, match, *arrays[:number], x, *arrays[number + 1:])

    for dtype in (np.float32, np.float16, np.longdouble):
        refused(f"one dtype.*{np.dtype(dtype)}", arrays[number].astype(dtype))
    for dtype in (np.int64, bool, complex, np.uint8):
        refused(f"{name}.*{np.dtype(dtype)}", arrays[number].astype(dtype))
    for bad in (np.ones((3, 8), "U1"), np.ones((3, 8), object), np.zeros((3, 8), "M8[s]")):
        refused(f"{name}.*{re.escape(str(bad.dtype))}", bad)
    refused(f"{name}.*{name}.data.*attn_mask", np.ma.masked_array(arrays[number], arrays[number] > 0))


def test_attention_mixed_dtypes():
    """16-bit keys and values beside a float32 query go together, and a float32 out beside 16-bit queries; no others."""
    f4, f2, bf = np.float32, np.float16, ml_dtypes.bfloat16
    for of_query, of_key, of_value in ((f4, f2, bf), (f4, f4, f2), (f4, f2, f4), (f2, f4, f4), (np.float64, f2, f2),
                                       (bf, f2, f2), (f2, bf, bf), (np.longdouble, f2, f2), (f2, f4, f2)):
        arrays = QUERY.astype(of_query), KEY.astype(of_key), VALUE.astype(of_value)
        names = ", ".join(str(x.dtype) for x in arrays)
        attention_refuses(TypeError, f"one dtype.*{names}", *arrays)
    for of_query, of_key, of_out in ((f4, f2, f2), (f4, f2, np.float64), (f2, f2, np.float64), (f2, f2, bf),
                                     (f4, f4, f2)):
        arrays = QUERY.astype(of_query), KEY.astype(of_key), VALUE.astype(of_key)
        attention_refuses(TypeError, f"out.*dtype.*{np.dtype(of_out)}", *arrays, out=np.ones(OUT, of_out))


def test_attention_out():
    for shape in ((2, 4, 3, 8), OUT[1:], (1, *OUT)):
        attention_refuses(ValueError, rf"out.*{re.escape(str(OUT))}.*{re.escape(str(shape))}", out=np.ones(shape))
    for dtype in (np.float32, int):
        attention_refuses(TypeError, f"out.*float64.*{np.dtype(dtype)}", out=np.ones(OUT, dtype))
    frozen = np.full(OUT, 7.0)
    frozen.flags.writeable = False
    attention_refuses(ValueError, "read-only", out=frozen)
    assert np.all(frozen == 7)
    attention_refuses(TypeError, "out.*list", out=[1.0])


@pytest.mark.parametrize("name", ["attn_mask", "bias"])
def test_attention_masks(name):
    kinds = "floating" if name == "bias" else "boolean or floating"
    for bad in (np.ones((3, 5), int), np.ones((3, 5), complex), np.ones(5, "U1"), np.ones(5, object)):
        attention_refuses(TypeError, f"{name}.*({kinds}|numbers).*{bad.dtype}", **{name: bad})
    for shape in ((4,), (5, 3), (3, 3, 5), (3, 1, 3, 5), (1, 2, 4, 3, 5), (2, 4, 3, 6)):
        attention_refuses(ValueError, f"{name}.*" + shapes(shape, (2, 4, 3, 5)), **{name: np.ones(shape)})
    attention_refuses(TypeError, f"{name} is a masked array", **{name: np.ma.masked_array(np.ones(5), np.ones(5))})
    if name == "bias":
        attention_refuses(TypeError, "bias must be floating, got dtype bool", bias=np.ones(5, bool))


def test_attention_numbers():
    refuse = attention_refuses
    for p in (0.1, 1, -0.5, np.nan):
        refuse(NotImplementedError, rf"dropout_p.*{p}", dropout_p=p)
    for bad in (0, 0.0, -1, np.nan, np.inf, -np.inf):
        refuse(ValueError, "softcap.*positive", softcap=bad)
    for bad in ("1", [1.0], 1j, True):
        refuse(TypeError, "softcap", softcap=bad)
    for bad in ((-1, None), (None, -1), (0, -(10**30))):
        refuse(ValueError, "window.*negative", window=bad)
    for bad in ((1,), (1, 2, 3), ()):
        refuse(ValueError, "window.*pair", window=bad)
    for bad in (3, "ab", (1.0, None), (True, None), {1: 2}, ("1", None)):
        refuse(TypeError, "window", window=bad)
    for bad in (6, -1, [0, 6], [-1, 5], 10**30, np.uint64(2**64 - 1)):
        refuse(ValueError, r"key_lengths.*from 0 to.*5", key_lengths=bad)
    for name in ("key_lengths", "causal_offset"):
        for bad in (1.0, [1.0, 2.0], True, "1", None if name == "causal_offset" else 1j):
            refuse(TypeError, name, **{name: bad})
        for bad in ([1, 2, 3], [[1, 2]], [[1], [2]]):
            refuse(ValueError, f"{name}.*broadcast.*before the heads", **{name: bad})
    for name in ("scale", "alibi_slopes", "sinks"):
        for bad in ("1", 1j, [None] * 4, True, np.ma.masked_array(np.ones(4), np.ones(4))):
            refuse(TypeError, name, **{name: bad})
        for shape in ((2,), (3, 4), (4, 1), (1, 1, 4)):
            refuse(ValueError, f"{name}.*{re.escape(str(shape))}.*head", **{name: np.ones(shape)})
    for name in ("scale", "sinks"):
        refuse(ValueError, name, **{name: np.ones((2, 4))})


def test_attention_arguments_that_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        scaled_dot_product_attention(QUERY, KEY, VALUE, None, 0.0, False, None, True, None)
    with pytest.raises(TypeError, match="unexpected"):
        scaled_dot_product_attention(QUERY, KEY, VALUE, mask=None)


RESULTS = {"grad_out": np.ones(OUT), "out": np.ones(OUT), "lse": np.ones(OUT[:-1]), "grad_lse": np.ones(OUT[:-1])}


def backward_refuses(error, match, query=QUERY, key=KEY, value=VALUE, **kwargs):
    arguments = {"enable_gqa": True, **RESULTS, **kwargs}
    with pytest.raises(error, match=match) as caught:
        scaled_dot_product_attention_backward(query=query, key=key, value=value, **arguments)
    assert type(caught.value) is error
    assert all(np.all(x == 1) for x in (QUERY, KEY, VALUE, *RESULTS.values()))


@pytest.mark.parametrize("name", RESULTS)
def test_results_of_attention_that_do_not_fit_its_inputs(name):
    x = RESULTS[name]
    for shape in ((), x.shape[1:], (1, *x.shape), (*x.shape[:-1], 1), x.shape[:-1]):
        backward_refuses(ValueError, f"{name} .*" + shapes(x.shape, shape), **{name: np.ones(shape)})
    for dtype in (np.float32, np.float16, np.int64, bool, np.longdouble, complex):
        backward_refuses(TypeError, f"{name} .*float64.*{np.dtype(dtype)}", **{name: x.astype(dtype)})
    for bad in (x.astype("U1"), x.astype(object)):
        backward_refuses(TypeError, f"{name} .*{re.escape(str(bad.dtype))}", **{name: bad})
    backward_refuses(TypeError, f"{name} is a masked array; pass {name}.data", **{name: np.ma.masked_array(x)})
    if name != "grad_lse":
        backward_refuses(TypeError, f"{name} ", **{name: None, "grad_lse": None})


def test_dtypes_of_results_beside_16_bit_queries():
    """Of their dtype or float32, but lse float32; a float32 query beside 16-bit keys has float32 results."""
    f4, f2, bf = np.float32, np.float16, ml_dtypes.bfloat16
    for of_query, of_key, name, bad in (
            (f2, f2, "out", bf), (f2, f2, "grad_out", np.float64), (bf, bf, "out", f2), (f2, f2, "lse", f2),
            (f2, f2, "grad_lse", f2), (f4, f2, "out", f2), (f4, f2, "grad_out", f2), (f4, f4, "lse", np.float64)):
        results = {k: x.astype(f4) for k, x in RESULTS.items()}
        good = f"{np.dtype(of_query)} or float32" if of_query != f4 and "lse" not in name else "float32"
        backward_refuses(TypeError, f"{name} must have dtype {good}, got {np.dtype(bad)}", QUERY.astype(of_query),
                         KEY.astype(of_key), VALUE.astype(of_key), **{**results, name: RESULTS[name].astype(bad)})


def test_gradients_of_nothing():
    given = {"scale": 0.5, "mask": np.ones(5), "bias": np.ones(5), "sinks": np.ones(4), "slopes": np.ones(4)}
    for option in given:
        name = {"mask": "attn_mask", "slopes": "alibi_slopes"}.get(option, option)
        backward_refuses(ValueError, f"grad_{option} .*{name}.* not given", **{f"grad_{option}": True})
        arguments = {**RESULTS, name: given[option], f"grad_{option}": True}
        scaled_dot_product_attention_backward(query=QUERY, key=KEY, value=VALUE, enable_gqa=True, **arguments)
    backward_refuses(ValueError, "grad_mask .*attn_mask.* boolean", attn_mask=np.ones(5, bool), grad_mask=True)


def test_gradients_of_attention_check_all_that_the_forward_call_checks():
    """A sample of each: the checks are the same."""
    backward_refuses(ValueError, "query.*key.*enable_gqa", enable_gqa=False)
    backward_refuses(TypeError, "one dtype", value=VALUE.astype(np.float32))
    backward_refuses(NotImplementedError, "dropout_p", dropout_p=0.1)
    backward_refuses(ValueError, "key_lengths.*0 to.*5", key_lengths=6)
    backward_refuses(ValueError, "attn_mask", attn_mask=np.ones(4))
    backward_refuses(TypeError, "bias", bias=np.ones(5, bool))
    backward_refuses(ValueError, "window", window=(-1, 1))
    backward_refuses(ValueError, "softcap", softcap=0)
    backward_refuses(ValueError, "alibi_slopes", alibi_slopes=np.ones(3))
    backward_refuses(ValueError, "sinks", sinks=np.ones(3))
    backward_refuses(ValueError, "scale", scale=np.ones(3))
    backward_refuses(TypeError, "causal_offset", causal_offset=0.5)
    with pytest.raises(TypeError, match="positional"):
        scaled_dot_product_attention_backward(*[QUERY] * 6, None, 0.0, False, None, True, None)


def test_merging():
    out, lse = np.ones((2, 3, 4)), np.ones((2, 3))

    def refused(error, match, outputs, lses):
        refuses(error, match, merge_attention_states, outputs, lses)

    refused(ValueError, "2 and 1", [out, out], [lse])
    refused(ValueError, "nothing to merge", [], [])
    refused(ValueError, shapes((2, 3, 5), (2, 3, 4)), [out, np.ones((2, 3, 5))], [lse, lse])
    refused(ValueError, shapes((2, 4), (2, 3, 4)), [out, out], [lse, np.ones((2, 4))])
    refused(ValueError, shapes((2, 3, 4), (2, 3, 4)), [out, out], [out, out])
    refused(TypeError, "one dtype.*float64.*float32", [out, out.astype(np.float32)], [lse, lse])
    refused(TypeError, r"outputs\[1\].*int64", [out, out.astype(int)], [lse, lse])
    refused(TypeError, r"lses\[0\].*complex128", [out, out], [lse.astype(complex), lse])
    refused(TypeError, r"outputs\[0\] is a masked array", [np.ma.masked_array(out)], [lse])


def test_merging_stacked_arrays():
    out, lse = np.ones((2, 3, 4)), np.ones((2, 3))

    def refused(error, match, outputs, lses, **axis):
        refuses(error, match, merge_attention_states, outputs, lses, **axis)

    refused(np.exceptions.AxisError, "axis 3 is out of bounds for array of dimension 3", out, lse, axis=3)
    refused(np.exceptions.AxisError, "axis 2 is out of bounds for array of dimension 2", out, lse, axis=2)
    refused(TypeError, "axis must be an int, not float", out, lse, axis=1.0)
    refused(TypeError, "axis must be an int, not NoneType", [out], [lse], axis=None)
    refused(ValueError, "2 and 3", out, lse.T)
    refused(ValueError, "nothing to merge", out[:0], lse[:0])
    refused(ValueError, "outputs must be parts", np.float64(1), lse)
    refused(TypeError, "outputs is a masked array; pass outputs.data", np.ma.masked_array(out), lse)
    with pytest.raises(TypeError, match="positional"):
        merge_attention_states(out, lse, 0)
