"""Beside other libraries, in any order of import, each with its threads at work: right, and nobody hangs.

Every order runs in a process of its own, which computes with each library before and after the others are there, in a
forked child, and in two threads at once. What is not installed is left out, and said to be.
"""

import importlib.util
import itertools
import os
import re
import subprocess
import sys

import pytest

import fastsoftmax

# How each is put to work on several threads: a function of nothing whose result is a number.
WORK = {
    "fastsoftmax": """
import fastsoftmax
def work():
    with fastsoftmax.num_threads(2):
        return float(fastsoftmax.logsumexp(fastsoftmax.softmax(X, -1)))
""",
    "scipy": """
import scipy.special, scipy.linalg
def work():
    return float(scipy.special.logsumexp(scipy.special.softmax(X, -1)) + 0 * scipy.linalg.norm(X @ X.T))
""",
    "sklearn": """
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils.extmath import softmax as sk_softmax
def work():
    pairwise_distances_argmin(X, X[:64])                # OpenMP, its own copy of the runtime
    return float(np.log(np.exp(sk_softmax(X.astype('f8'))).sum()))
""",
    "torch": """
import torch
def work():
    t = torch.from_numpy(X)
    torch.mm(t, t.T)                                    # OpenMP, its own copy of the runtime
    return float(torch.logsumexp(torch.softmax(t, -1).reshape(-1), 0))
""",
}
INSTALLED = [name for name in WORK if importlib.util.find_spec(name)]
ORDERS = list(itertools.permutations(INSTALLED))
# Each library first and last, and with fastsoftmax in each place, in CI; all orders are slow.
FEW = {ORDERS[0], ORDERS[-1], *(o for o in ORDERS if len(o) <= 2)}

PROGRAM = """
import os, sys, threading
import numpy as np
X = np.random.default_rng(0).normal(size=(400, 800)).astype('f4')
works = []
{parts}
results = [w() for _ in range(3) for w in works]
def child():
    pid = os.fork()
    if pid == 0:
        os._exit(0 if abs(works[{ours}]() - results[{ours}]) < 1e-9 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
child()
found = []
threads = [threading.Thread(target=lambda: found.extend(w() for _ in range(5) for w in works)) for _ in range(2)]
for t in threads: t.start()
for t in threads: t.join()
results += found
assert len(found) == 10 * len(works)
assert max(results) - min(results) < 1e-3, results
child()
maps = open('/proc/self/maps').read().split() if os.path.exists('/proc/self/maps') else []
names = {{word.split('/')[-1] for word in maps if '/' in word}}
print(sorted(n for n in names if n.startswith('lib') and 'omp' in n.split('.so')[0]))
"""


def run(order):
    parts = "".join(f"{WORK[name]}works.append(work)\nwork()\n" for name in order)
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c",
         PROGRAM.format(parts=parts, ours=order.index("fastsoftmax"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, capture_output=True, text=True,
        timeout=300, check=False)


@pytest.mark.skipif(len(INSTALLED) == 1, reason="none of scipy, sklearn and torch is installed")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("order", [
    pytest.param(o, id="-".join(o), marks=() if o in FEW else pytest.mark.slow) for o in ORDERS])
def test_any_order_of_import(order):
    done = run(order)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="libraries are listed in /proc")
@pytest.mark.parametrize("first", ["fastsoftmax", "torch"])
def test_openmp_runtimes_beside_pytorch(first):
    """PyTorch brings a copy of libgomp. Under the name that ours has, libgomp.so.1, the loader takes whichever came
    first for both; under another name two stand beside each other, and no third."""
    if "torch" not in INSTALLED:
        pytest.skip("PyTorch is not installed")
    alone = subprocess.run(
        [sys.executable, "-c", "import torch\nprint(open('/proc/self/maps').read())"], capture_output=True, text=True,
        check=True).stdout
    order = ("fastsoftmax", "torch") if first == "fastsoftmax" else ("torch", "fastsoftmax")
    done = run(order)
    assert done.returncode == 0, done.stderr
    brought_by_torch = set(re.findall(r"/(lib[^/\s]*omp[^/\s]*\.so[^/\s]*)", alone))
    ours = fastsoftmax.show_config("dicts")["openmp"]["path"]
    names = {os.path.basename(ours), os.path.basename(os.path.realpath(ours))}
    loaded = set(re.findall(r"'([^']+)'", done.stdout))
    assert loaded <= brought_by_torch | names
    assert len(loaded) == len(brought_by_torch) + (not names & brought_by_torch), loaded
