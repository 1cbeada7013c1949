"""The library of ops, and what they share: tensors seen as NumPy arrays, checks, and the number of threads.

An op has a kernel for CPU tensors, which calls the NumPy function on arrays of the tensors' memory; a fake kernel,
which gives shapes, dtypes and strides alone; and a backward formula. The public functions sort their arguments for an
op, whose schema gives each argument one type.
"""

import functools

import numpy as np
import torch
from torch.autograd import forward_ad

from fastsoftmax import _bfloat16, _threads, _validate

FLOATS = frozenset((torch.float32, torch.float64, torch.float16, torch.bfloat16))

_library = torch.library.Library("fastsoftmax", "DEF")


def define(schema, kernel, fake, setup_context, backward):
    """Define an op and register its kernel, its fake kernel and its formula; returns what calls it."""
    name = schema[:schema.index("(")]
    op = _define(name, schema, kernel, fake)
    torch.library.register_autograd(f"fastsoftmax::{name}", backward, setup_context=setup_context, lib=_library)
    return op


def define_gradient(schema, kernel, fake, function):
    """As `define`, for an op that computes a gradient of `function` and has none itself."""
    def backward(ctx, *grads):
        raise NotImplementedError(
            f"fastsoftmax.torch.{function} has no second derivatives: for a gradient of a gradient, use PyTorch's own")

    return define(schema, kernel, fake, None, backward)


def define_without_gradient(schema, kernel, fake, function):
    """As `define`, for an op that `function` calls where nothing requires a gradient: a formula, though it is not
    needed, would add a third to the time of a call."""
    @functools.wraps(kernel)
    def checked(*args):
        if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in args):
            raise NotImplementedError(f"this op has no gradient: call fastsoftmax.torch.{function} with tensors that "
                                      "require one")
        return kernel(*args)

    return _define(schema[:schema.index("(")], schema, checked, fake)


def _define(name, schema, kernel, fake):
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, with_threads_of_torch(kernel), "CPU")
    torch.library.register_fake(f"fastsoftmax::{name}", fake, lib=_library)
    return getattr(torch.ops.fastsoftmax, name).default


def with_threads_of_torch(kernel):
    """The kernel with as many threads as torch uses, unless the calling thread is in a `num_threads` block."""
    @functools.wraps(kernel)
    def run(*args, **keywords):
        numbers = _threads._local.numbers
        if numbers:
            return kernel(*args, **keywords)
        numbers.append(torch.get_num_threads())
        try:
            return kernel(*args, **keywords)
        finally:
            numbers.pop()

    return run


# ---- tensors and arrays

def array(x):
    """The NumPy array on a tensor's memory; None stays."""
    if x is None:
        return None
    if x.requires_grad:
        x = x.detach()
    if x.dtype is torch.bfloat16:
        return x.view(torch.int16).numpy().view(_bfloat16.dtype())
    return x.numpy()


def tensor(result, dtype):
    """The tensor on the memory of a NumPy result, or of a NumPy scalar, of this dtype."""
    if dtype is torch.bfloat16:
        return torch.from_numpy(np.asarray(result, _bfloat16.dtype()).view(np.int16)).view(dtype)
    return torch.from_numpy(result if isinstance(result, np.ndarray) else np.asarray(result))


def empty(shape, dtype):
    """A contiguous tensor for a kernel to write to."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def nothing(dtype):
    """The empty tensor that stands for a result that was not asked for."""
    return torch.empty(0, dtype=dtype, device="cpu")


def statistics_dtype(dtype):
    """The dtype of losses, lse and entropy for inputs of this dtype."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def sum_to(grad, shape, dtype):
    """A gradient summed over the dimensions in which an argument of this shape was broadcast."""
    return grad.sum_to_size(shape).to(dtype)


# ---- checks

def floats(x, name):
    """Raise unless x is a tensor that the kernels take."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}; the functions of fastsoftmax itself take "
                        "NumPy arrays and lists")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {x.dtype}; convert it, for "
                        f"instance by {name}.float()")
    return placed(x, name)


def placed(x, name):
    """x, if it is a dense tensor on the CPU without a tangent; else an error that says what to do."""
    if not x.is_cpu:
        raise NotImplementedError(
            f"{name} is on the device meta, which has no elements: pass a tensor on the CPU" if x.is_meta else
            f"{name} is on the device {x.device}, and fastsoftmax computes on CPUs: pass {name}.cpu(), or call "
            "PyTorch's own function")
    if x.is_nested:
        raise NotImplementedError(f"{name} is a nested tensor, and fastsoftmax takes dense ones: pass "
                                  "torch.nested.to_padded_tensor and key_lengths, or use varlen_attention")
    if x.layout is not torch.strided:
        raise NotImplementedError(f"{name} has the layout {x.layout}, and fastsoftmax takes dense tensors: pass "
                                  f"{name}.to_dense()")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(
            f"{name} has a tangent, and fastsoftmax has no forward-mode derivatives: use PyTorch's own function")
    return x


def refuse_dropout(dropout_p):
    """Raise: dropout_p is not 0."""
    raise NotImplementedError(f"dropout is not implemented: dropout_p must be 0, got {dropout_p}; train without it, or "
                              "call torch.nn.functional.scaled_dot_product_attention")


def optional(x, name):
    """The tensor of an optional argument, which may be a list or an array; None stays."""
    if x is None:
        return None
    return placed(x if isinstance(x, torch.Tensor) else torch.as_tensor(x, device="cpu"), name)


def number_or_tensor(x, name):
    """(number, None) for a Python number, (1, tensor) otherwise: the two arguments of an op."""
    if isinstance(x, (int, float, torch.SymInt, torch.SymFloat)):
        return x, None
    return 1, optional(x, name)


def axes_of(axis, x, dim=None):
    """The axes as a list for an op; None stays."""
    if dim is not None:
        raise TypeError(f"dim is not an argument here: pass axis={dim!r}, which has the same meaning")
    if axis is None:
        return None
    if isinstance(axis, (tuple, list)):
        return [_axis(a) for a in axis]
    axis = _axis(axis)
    return [] if x.ndim == 0 and axis in (0, -1) else [axis]


def _axis(a):
    if isinstance(a, bool) or not hasattr(a, "__index__"):
        raise TypeError(f"an axis must be an int, not {type(a).__name__}")
    return a if isinstance(a, int) else a.__index__()


def numpy_axis(axis):
    """The axes as the NumPy functions take them: an int where there is one, which is their fast path."""
    return axis if axis is None else axis[0] if len(axis) == 1 else tuple(axis)


def reduced_shape(x, axis, keepdims):
    """The shape of a reduction of x."""
    axes = _validate._axes(axis if axis is None else tuple(axis), x.ndim)
    return [1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i not in axes]
