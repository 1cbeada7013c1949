"""Runs tests/smoke.py, and attention, gradients and losses of odd shapes, under Valgrind's memcheck: no decision on
memory that nobody wrote.

    python tests/memcheck.py [--isas x86_64 x86_64_v3]     # as installed; by default all that Valgrind's CPU has

AddressSanitizer (tests/sanitize.py) sees what is read beyond an array, but not what is read before it is written. Needs
`valgrind`; takes two minutes. Python and NumPy have reports of their own, so those count in which a module of this
package has a part. A build with `-g1` instead of `-g0`, and without `-Wl,-s`, in setup.py shows their lines.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHAPES = [(17, 33, 65), (1, 129, 64), (1, 1, 64), (3, 513, 19), (2, 4099, 17), (40, 130, 3), (5, 7, 1)]   # L, S, E


def check_attention():
    """Every option and its gradient, in shapes whose last block, register and lane are partly empty."""
    import numpy as np

    import fastsoftmax

    rng = np.random.default_rng(0)
    options = [
        {}, {"is_causal": True}, {"window": (3, 2), "softcap": 5.0}, {"alibi_slopes": [0.1, 0.2], "sinks": [0.0, 1.0]},
        {"key_lengths": 1}]
    for dtype in (np.float32, np.float64, np.float16):
        for length, keys, width in SHAPES:
            query, grad_out = rng.normal(size=(2, 1, 2, length, width)).astype(dtype)
            key, value = rng.normal(size=(2, 1, 2, keys, width)).astype(dtype)
            masks = [{"attn_mask": rng.random((length, keys)) < 0.7}, {"bias": rng.normal(size=keys).astype(dtype)}]
            for kwargs in options + masks:
                results = fastsoftmax.scaled_dot_product_attention(
                    query, key, value, return_lse=True, return_entropy=True, **kwargs)
                decide(*results)
                decide(*fastsoftmax.scaled_dot_product_attention_backward(
                    grad_out, query, key, value, *results[:2], grad_bias="bias" in kwargs,
                    grad_sinks="sinks" in kwargs, grad_slopes="alibi_slopes" in kwargs, **kwargs))


def check_rows():
    """softmax of long rows; the gradients of rows, and the losses, of lengths whose last register is partly empty."""
    import numpy as np

    import fastsoftmax as fs

    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64, np.float16):
        x = rng.normal(size=(9, 30_001)).astype(dtype)          # long rows, some with a large element late
        x[::2, 20_000] = 12
        decide(fs.softmax(x, -1), fs.softmax(x.T.copy(), 0), fs.softmax(x[1], -1, out=x[1]))
        for n in (1, 2, 3, 10, 17, 31, 100, 1000, 4099):
            x, grad = rng.normal(size=(2, 19, n)).astype(dtype)
            for axis in (-1, 0):
                of_rows = grad[:, 0] if axis else grad[0]
                decide(fs.softmax_backward(grad, fs.softmax(x, axis), axis),
                       fs.log_softmax_backward(grad, fs.log_softmax(x, axis), axis, temperature=0.7),
                       fs.logsumexp_backward(of_rows, x, fs.logsumexp(x, axis), axis),
                       fs.softmax_entropy_backward(of_rows, x, axis))
                labels = rng.integers(0, x.shape[axis], of_rows.shape)
                for kwargs in ({}, {"label_smoothing": 0.1, "z_loss": 0.01}):
                    decide(*fs.cross_entropy(x, labels, axis, return_lse=True, return_grad=True, **kwargs))
                decide(*fs.cross_entropy(x, fs.softmax(x, axis).astype(fs.cross_entropy(x, labels, axis).dtype), axis,
                                         return_grad=True))
            loss, grads = fs.linear_cross_entropy(x, rng.normal(size=(5, n)).astype(dtype), rng.integers(0, 5, 19),
                                                  return_grad=True)
            decide(loss, *grads)


def decide(*results):
    """A decision on each number, which memcheck reports if nobody wrote it."""
    import numpy as np

    assert not any(np.isnan(np.asarray(result, np.float64)).any() for result in results)


def memcheck(isa, *command):
    """The reports that name a module of this package, of one command."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        status = subprocess.run(
            ["valgrind", "--tool=memcheck", "--leak-check=no", "--error-limit=no", "--num-callers=40",
             f"--log-file={log}.%p", sys.executable, *map(str, command)],
            env={**os.environ, "FASTSOFTMAX_ISA": isa, "PYTHONMALLOC": "malloc", "OPENBLAS_NUM_THREADS": "1"},
            check=False).returncode
        text = "\n".join(path.read_text(errors="replace") for path in sorted(Path(folder).glob("log.*")))
    reports = re.split(r"^==\d+== *\n", text, flags=re.MULTILINE)
    if status:
        raise SystemExit(f"{isa}: {' '.join(map(str, command))} ended with {status}\n{text[-3000:]}")
    return [report for report in reports if re.search(r" (at|by) 0x.*fastsoftmax/", report)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isas", nargs="*")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        check_attention()
        check_rows()
        return
    from fastsoftmax import _dispatch

    # Valgrind's CPU has no AVX-512. smoke.py takes one instruction set after another itself.
    isas = options.isas or [isa for isa in _dispatch.supported() if not isa.startswith("x86_64_v4")]
    runs = [(isa, __file__, "--inside") for isa in isas] + [(isas[-1], HERE / "smoke.py")]
    failed = False
    for isa, *command in runs:
        found = memcheck(isa, *command)
        print(f"{Path(command[0]).name}, {isa}: {len(found)} reports", *found[:20], sep="\n", flush=True)
        failed = failed or bool(found)
    sys.exit(failed)


if __name__ == "__main__":
    main()
