"""mypy --strict accepts typical use, and refuses what would be a TypeError."""

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_doctests import readme_blocks

pytest.importorskip("mypy", reason="mypy is not installed: types are not checked")

USE = '''
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import fastsoftmax
from fastsoftmax import (
    causal_mask_, causal_softmax, cross_entropy, filter_logits, get_num_threads, linear_cross_entropy, log_softmax,
    log_softmax_backward, logsumexp, logsumexp_backward, merge_attention_states, num_threads, penalize_, sample,
    scaled_dot_product_attention, scaled_dot_product_attention_backward, set_num_threads, show_config, softmax,
    softmax_backward, softmax_entropy, softmax_entropy_backward,
)

x: npt.NDArray[np.float32] = np.zeros((2, 3, 4), np.float32)
half = x.astype(np.float16)
keep: npt.NDArray[np.bool_] = x > 0
counts = x.shape

y: npt.NDArray[np.float32] = softmax(x, axis=-1)
z: np.ndarray[Any, Any] = log_softmax(half, (0, -1), temperature=0.7, where=keep, out=half)
softmax([3.0, 2.0, 1.0]).round(3)
softmax([[3, 2], [1, 0]], np.int64(1), where=[True, False], temperature=[[1.0], [2.0]], dtype="float32")
softmax(x, None, dtype=np.float64).sum(axis=-1)
softmax(x, (), dtype=x.dtype, temperature=np.float32(2))
accuracy = float((softmax(x, axis=1).argmax(1) == 0).mean())

total: float = float(logsumexp(x))
rows: npt.NDArray[np.float32] = logsumexp(x, axis=-1, keepdims=True, out=np.empty((2, 3, 1), np.float32))
log_of_abs, sign = logsumexp(x, b=[1, -1, 1, 1], return_sign=True)
log_of_abs, sign = logsumexp(x, 1, None, False, True)
assert_type(logsumexp(x, 1, return_sign=True), tuple[Any, Any])


def either(signed: bool) -> object:
    return logsumexp(x, return_sign=signed)


entropy = softmax_entropy(x, axis=-1, temperature=np.array([0.5, 2.0]).reshape(2, 1, 1), where=keep)
print(entropy.mean(), float(softmax_entropy([1.0, 2.0])))

weights = causal_softmax(x, offset=x.shape[2] - x.shape[1], temperature=8, dtype=np.float32, out=x)
assert_type(causal_mask_(x, offset=np.int32(1), fill_value=-1e9), npt.NDArray[np.float32])

dx: npt.NDArray[np.float32] = softmax_backward(y, y, -1, temperature=2.0, out=np.empty_like(y))
log_softmax_backward([1.0, 0.0], [-0.5, -1.5], (0,), temperature=[0.5])
logsumexp_backward(np.ones((2, 3, 1)), y, rows, -1, keepdims=True, where=keep).sum()
softmax_entropy_backward(np.ones((2, 3)), x, axis=2, temperature=0.5, where=keep, out=x.copy())
loss = float(cross_entropy(x, np.ones((2, 3), int), weight=[1.0] * 4, label_smoothing=0.1))
loss, lse, grad = cross_entropy(x, [[0] * 4] * 2, 1, return_lse=True, grad_into=x.copy(), reduction="sum", z_loss=1e-4)
loss, (dhidden, dweight) = linear_cross_entropy(x[0], np.ones((5, 4)), [0, 1, 2], softcap=30, return_grad=True)

tokens, logprob = sample(x, 1, temperature=[[0.5] * 4] * 2, top_k=5, rng=np.random.default_rng(0), return_logprob=True)
token = int(sample([0.0, 1.0], where=[True, False], min_p=0.1, typical_p=0.9, uniform=0.5))
kept: npt.NDArray[np.float32] = filter_logits(x, top_p=np.full((2, 3), 0.9), out=x.copy())
assert_type(penalize_(x, np.zeros((2, 3, 1), int), repetition=1.2, lengths=[[0, 1, 1]] * 2), npt.NDArray[np.float32])

out: npt.NDArray[np.float32] = scaled_dot_product_attention(x, x, x)
scaled_dot_product_attention(x, x, x, None, 0.0, True, 0.5, True, causal_offset=np.array([1]), out=out)
scaled_dot_product_attention([[1.0]], [[2.0]], [[3.0]], [[True]], scale=[1.0], window=(1, None), softcap=30)
assert_type(scaled_dot_product_attention(x, x, x, keep[:, :, :3], bias=x[0, 0, :3]), npt.NDArray[Any])
pair = scaled_dot_product_attention(x, x, x, is_causal=True, return_lse=True, sinks=np.zeros(2), key_lengths=3)
assert_type(pair, tuple[npt.NDArray[Any], npt.NDArray[Any]])
out, evenness = scaled_dot_product_attention(x, x, x, return_entropy=True, alibi_slopes=np.array([0.5, 0.25]))
out, lse, evenness = scaled_dot_product_attention(x, x, x, return_lse=True, return_entropy=True)
dquery, dkey, dvalue, *others = scaled_dot_product_attention_backward(out, x, x, x, out, lse)
assert_type(dkey, npt.NDArray[Any])
found = scaled_dot_product_attention_backward(
    out, x, x, x, out, lse, keep[:, :, :3], 0.0, True, 0.5, True, grad_scale=True, grad_lse=lse, window=(1, None))
assert_type(found, tuple[npt.NDArray[Any], ...])
merged, lse = merge_attention_states([out, out], (lse, lse))
merged, lse = merge_attention_states(*zip(*[pair, pair]))


def attention(log: bool) -> object:
    return scaled_dot_product_attention(x, x, x, return_lse=log)


set_num_threads(2)
assert_type(get_num_threads(), int)
with num_threads(1) as limit:
    fastsoftmax.softmax(x, 1)


@num_threads(2)
def work(n: int) -> list[int]:
    return [n]


assert_type(work(1), list[int])
show_config()
isa: str = show_config(mode="dicts")["isa"]
version: str = fastsoftmax.__version__
'''

MISUSE = '''
import numpy as np

from fastsoftmax import (
    causal_mask_, cross_entropy, logsumexp, merge_attention_states, num_threads, penalize_, sample,
    scaled_dot_product_attention, scaled_dot_product_attention_backward, set_num_threads, show_config, softmax,
    softmax_backward,
)

x = np.zeros((2, 3))
softmax(x, 1.0)  # type: ignore
softmax(x, 1, 2.0)  # type: ignore
softmax(x, temperature=None)  # type: ignore
softmax(x, out=[0.0, 0.0])  # type: ignore
softmax(x, axes=1)  # type: ignore
logsumexp(x, keepdims="yes")  # type: ignore
causal_mask_([[1.0]])  # type: ignore
softmax_backward(x)  # type: ignore
softmax_backward(x, x, 1.0)  # type: ignore
cross_entropy(x, [0, 1], reduction="average")  # type: ignore
cross_entropy(x, [0, 1], None)  # type: ignore
sample(x, 1.0)  # type: ignore
sample(x, return_logprob="yes")  # type: ignore
penalize_([1.0, 2.0], [0])  # type: ignore
scaled_dot_product_attention(x, x)  # type: ignore
scaled_dot_product_attention(x, x, x, None, 0.0, False, None, False, x)  # type: ignore
scaled_dot_product_attention(x, x, x, mask=x)  # type: ignore
scaled_dot_product_attention(x, x, x, window=3)  # type: ignore
scaled_dot_product_attention_backward(x, x, x, x)  # type: ignore
scaled_dot_product_attention_backward(x, x, x, x, x, x, grad_query=True)  # type: ignore
merge_attention_states(x)  # type: ignore
set_num_threads(1.5)  # type: ignore
num_threads("2")  # type: ignore
show_config("yaml")  # type: ignore
'''


def sources():
    readme = ["import doctest\n"]
    for block in readme_blocks():
        readme.append(doctest.script_from_examples(block) if ">>>" in block else block)
    return {"use": USE, "misuse": MISUSE, "readme": "\n".join(readme)}


@pytest.fixture(scope="module")
def verdict(tmp_path_factory, pytestconfig):
    """mypy's errors in all files, from one run."""
    folder = tmp_path_factory.mktemp("typing")
    cache = getattr(pytestconfig, "cache", None)        # there is none with -p no:cacheprovider
    for name, text in sources().items():
        (folder / f"{name}.py").write_text(text)
    package = Path(__file__).parent.parent
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"),
            # as for an installed package, whose own text is not the user's to mend
            "--follow-imports=silent",
            # a README shows one thing after another in one namespace, perhaps with packages that bear no types
            *("--allow-redefinition", "--ignore-missing-imports"),
            f"--cache-dir={cache.mkdir('mypy') if cache else os.devnull}",
            *(f"{name}.py" for name in sources()),
        ],
        cwd=folder,
        env={**os.environ, "MYPYPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["use", "misuse", "readme"])
def test_mypy_agrees(verdict, name):
    complaints = [line for line in verdict.splitlines() if line.startswith(f"{name}.py")]
    assert not complaints, "\n".join(complaints)


def test_what_mypy_accepts_runs():
    exec(compile(USE, "use", "exec"), {"__name__": "use"})
