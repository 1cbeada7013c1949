"""How each library is asked for each function: one class per library, one way of calling it.

``Library(threads).call(family, shape)`` gives a pair ``(statement, namespace)``, ready for ``timeit``: a string and
not a closure, so that on ten numbers nobody pays for one more Python call. What a library cannot do raises
``UnavailableError`` with the reason. Results go to preallocated memory where the library can, except for arrays below
``shapes.SMALL`` elements, which are measured as people write them.
"""

import importlib
import importlib.util
import os

import numpy as np

THREADS_IN_ONE_PROCESS = 1  # with more, the thread pools of the libraries that share it would spin against each other


class UnavailableError(Exception):
    """The library cannot do this; the message says why."""


def numpy_data(shape):
    """The same normal deviates for every library, in the dtype asked for."""
    x = np.random.default_rng(2).standard_normal(shape.shape, dtype=np.float32) * 2
    if shape.dtype != "bfloat16":
        return x.astype(shape.dtype, copy=False)
    try:
        import ml_dtypes
    except ImportError:
        raise UnavailableError("ml_dtypes is not installed") from None
    return x.astype(ml_dtypes.bfloat16)


def result_like(x, family, axis):
    """Where the result goes: of the input's shape, or without the axis for the reductions."""
    if family in ("logsumexp", "softmax_entropy"):
        return np.empty(x.shape[:axis % x.ndim] + x.shape[axis % x.ndim + 1:], x.dtype)
    return np.empty_like(x)


def hidden(shape):
    """(L, S) booleans, True above the diagonal: what a causal mask hides."""
    return ~np.tri(*shape.shape[-2:], dtype=bool)


class Ours:
    """fastsoftmax, through its public functions."""

    name, needs = "fastsoftmax", ("fastsoftmax",)

    def __init__(self, threads):
        import fastsoftmax

        fastsoftmax.set_num_threads(threads)
        self.module = fastsoftmax

    def call(self, family, shape):
        x = numpy_data(shape)
        space = {"f": getattr(self.module, family), "x": x, "axis": shape.axis}
        if family == "causal_mask_":
            return "f(x)", space
        axis = "" if family == "causal_softmax" else ", axis"
        if shape.small or family == "softmax_entropy":
            return f"f(x{axis})", space
        space["out"] = result_like(x, family, shape.axis)
        return f"f(x{axis}, out=out)", space


class NumPyReference(Ours):
    """The definition in NumPy, fastsoftmax.reference: what one would write without any library."""

    name, needs = "NumPy", ("fastsoftmax",)

    def __init__(self, threads):
        from fastsoftmax import reference

        self.module = reference

    def call(self, family, shape):
        x = numpy_data(shape)
        axis = "" if family in ("causal_softmax", "causal_mask_") else ", axis"
        return f"f(x{axis})", {"f": getattr(self.module, family), "x": x, "axis": shape.axis}


class SciPy:
    """scipy.special; it takes no `out`."""

    name, needs = "SciPy", ("scipy",)

    def __init__(self, threads):
        import scipy.special

        self.special = scipy.special

    def call(self, family, shape):
        if shape.dtype == "bfloat16":
            raise UnavailableError("SciPy has no bfloat16")
        x = numpy_data(shape)
        space = {"x": x, "axis": shape.axis, "np": np, "special": self.special}
        if family == "causal_softmax":
            space["hidden"] = hidden(shape)
            return "special.softmax(np.where(hidden, -np.inf, x), -1)", space
        if family == "softmax_entropy":
            return "special.entr(special.softmax(x, axis)).sum(axis)", space
        if family == "causal_mask_":
            raise UnavailableError("SciPy has no masking; see NumPy")
        return f"special.{family}(x, axis)", space


TORCH = {
    "softmax": "torch._softmax(x, axis, False, out=out)",
    "log_softmax": "torch._log_softmax(x, axis, False, out=out)",
    "logsumexp": "torch.logsumexp(x, axis, out=out)",
    "softmax_entropy": "entropy(x, axis)",
    "causal_softmax": "torch._softmax(x.masked_fill(hidden, minus_inf), axis, False, out=out)",
    "causal_mask_": "x.masked_fill_(hidden, minus_inf)",
}


class PyTorch:
    """torch on the CPU, without gradients, with `out` where torch has it."""

    name, needs = "PyTorch", ("torch",)

    def __init__(self, threads):
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch

    def entropy(self, x, axis):
        logs = self.torch.log_softmax(x, axis)
        return -(logs.exp() * logs).sum(axis)

    def tensor(self, array):
        if array.dtype.name == "bfloat16":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def call(self, family, shape):
        x = numpy_data(shape)
        space = {"torch": self.torch, "x": self.tensor(x), "axis": shape.axis}
        space.update(minus_inf=-np.inf, entropy=self.entropy)
        if family.startswith("causal"):
            space["hidden"] = self.torch.from_numpy(hidden(shape))
        elif shape.small and family != "softmax_entropy":
            return f"torch.{family}(x, axis)", space
        space["out"] = self.tensor(result_like(x, family, shape.axis))
        return TORCH[family], space


class OnnxRuntime:
    """ONNX Runtime's CPU provider on one operator, spinning as by default, I/O bound to NumPy's memory."""

    name, needs = "ONNX Runtime", ("onnxruntime", "onnx")

    def __init__(self, threads):
        import onnx
        import onnxruntime

        self.onnx, self.onnxruntime, self.threads = onnx, onnxruntime, threads

    def nodes(self, family, shape):
        """The graph: one operator where ONNX has one."""
        node = self.onnx.helper.make_node
        axis = shape.axis % len(shape.shape)
        if family in ("softmax", "log_softmax"):
            return [node("Softmax" if family == "softmax" else "LogSoftmax", ["x"], ["y"], axis=axis)]
        if family == "logsumexp":  # axes is an attribute up to opset 17
            return [node("ReduceLogSumExp", ["x"], ["y"], axes=[axis], keepdims=0)]
        if family == "softmax_entropy":
            return [
                node("LogSoftmax", ["x"], ["l"], axis=axis), node("Exp", ["l"], ["p"]), node("Mul", ["p", "l"], ["pl"]),
                node("ReduceSum", ["pl", "axes"], ["s"], keepdims=0), node("Neg", ["s"], ["y"]),
            ]
        if family == "causal_softmax":
            return [node("Where", ["hidden", "minus_inf", "x"], ["m"]), node("Softmax", ["m"], ["y"], axis=axis)]
        raise UnavailableError("ONNX Runtime works on no array in place")

    def session(self, family, shape, x, out):
        helper, from_array = self.onnx.helper, self.onnx.numpy_helper.from_array
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        constants = [from_array(np.array([shape.axis % x.ndim]), "axes")]
        if family == "causal_softmax":
            constants += [from_array(hidden(shape), "hidden"), from_array(np.array(-np.inf, x.dtype), "minus_inf")]
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes(family, shape), family, [value("x", kind, x.shape)], [value("y", kind, out.shape)],
            [c for c in constants if c.name != "axes" or family == "softmax_entropy"],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        options = self.onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self.threads, 3
        return self.onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def call(self, family, shape):
        if shape.dtype == "bfloat16":
            raise UnavailableError("ONNX Runtime has no bfloat16 on the CPU")
        x = numpy_data(shape)
        out = result_like(x, family, shape.axis)
        session = self.session(family, shape, x, out)
        if shape.small:
            return "run(None, feed)", {"run": session.run, "feed": {"x": x}}
        binding = session.io_binding()
        binding.bind_input("x", "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        binding.bind_output("y", "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        return "run(binding)", {"run": session.run_with_iobinding, "binding": binding, "keep": (x, out)}


class Jax:
    """jax.jit on the CPU with x64 enabled; XLA allocates its results itself."""

    name, needs = "JAX", ("jax",)

    def __init__(self, threads):
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # no hand-over to another thread in a small call
        self.jax = jax

    def function(self, family, shape):
        nn, jnp, axis = self.jax.nn, self.jax.numpy, shape.axis
        if family == "causal_softmax":
            mask = hidden(shape)
            return lambda x: nn.softmax(jnp.where(mask, -jnp.inf, x), axis)
        if family == "softmax_entropy":
            return lambda x: -(nn.softmax(x, axis) * nn.log_softmax(x, axis)).sum(axis)
        if family == "causal_mask_":
            raise UnavailableError("JAX's arrays are never written in place")
        f = self.jax.scipy.special.logsumexp if family == "logsumexp" else getattr(nn, family)
        return lambda x: f(x, axis)

    def call(self, family, shape):
        f = self.jax.jit(self.function(family, shape))
        return "f(x).block_until_ready()", {"f": f, "x": self.jax.numpy.asarray(numpy_data(shape))}


LIBRARIES = {cls.name: cls for cls in (Ours, NumPyReference, SciPy, PyTorch, OnnxRuntime, Jax)}


def missing(cls):
    """The first of the modules a library needs that cannot be found, or None."""
    return next((module for module in cls.needs if importlib.util.find_spec(module) is None), None)


def version(cls):
    """The installed version, of NumPy for the NumPy reference."""
    module = "numpy" if cls is NumPyReference else cls.needs[0]
    return importlib.import_module(module).__version__


def environment(threads):
    """The variables that hold a library to `threads`; they must be set before it is imported.

    XLA has no setting of its own for the number of threads: NPROC is what its pool reads, and a process that
    measures JAX alone is also pinned to as many CPUs (`pin`).
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTSOFTMAX_NUM_THREADS", "NPROC")
    settings = dict.fromkeys(names, str(threads))
    if threads == 1:
        settings["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return settings


def pin(threads):
    """Keep this process on `threads` CPUs, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
