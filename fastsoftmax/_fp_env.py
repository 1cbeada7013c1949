"""default_fp_env: run a function in C's default floating-point environment."""

import functools

from fastsoftmax import _cpu


def default_fp_env(function):
    """Decorator: the caller's rounding and flush-to-zero modes have no effect, and its exception flags do not change.

    Kernels set this environment themselves. NumPy, which prepares their arguments, does not.
    """
    @functools.wraps(function)
    def in_default_fp_env(*args):
        with _cpu.DefaultFPEnv():
            return function(*args)

    return in_default_fp_env
