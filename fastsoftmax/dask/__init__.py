"""The softmax family and attention on dask arrays: lazy, in chunks of any size, larger than memory or on a cluster.

The functions take dask arrays and return dask arrays. The axes of a softmax may be chunked, and so may queries and
keys: each chunk gives a partial state, states are merged by tree, and no task holds more than a few chunks. Shapes,
dtypes and options are checked when the graph is built. Kernels inside tasks run with one thread each, since the workers
are the threads. Importing this module imports dask; ``import fastsoftmax`` does not.
"""

try:
    import dask.array as _  # noqa: F401
except ImportError as error:
    raise ImportError(f"fastsoftmax.dask needs dask.array ({error}): pip install 'fastsoftmax[dask]'") from error

from fastsoftmax.dask._attention import scaled_dot_product_attention
from fastsoftmax.dask._rows import causal_softmax, log_softmax, logsumexp, softmax, softmax_entropy

__all__ = ["causal_softmax", "log_softmax", "logsumexp", "scaled_dot_product_attention", "softmax", "softmax_entropy"]
