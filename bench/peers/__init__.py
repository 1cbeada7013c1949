"""How each library is asked for each function: one file for each, one way of calling it (`common.Peer.call`).

For attention every library gets its arrays in its own natural layout. Where it has several operators for the same work,
each is tried, and the fastest is the one that is measured.
"""

from peers.jax_ import Jax
from peers.litert_ import Xnnpack
from peers.numpy_ import NumPy
from peers.onnxruntime_ import OnnxRuntime
from peers.openvino_ import OpenVino
from peers.oracle import Oracle
from peers.ours import Ours
from peers.scipy_ import SciPy
from peers.torch_ import PyTorch, PyTorchFolded

CLASSES = (Ours, Oracle, NumPy, SciPy, PyTorch, PyTorchFolded, OnnxRuntime, OpenVino, Jax, Xnnpack)
LIBRARIES = {cls.name: cls for cls in CLASSES}
BY_HAND = (PyTorchFolded.name,)  # rearranged by the caller: in decoding compared on its own, not as the best peer


def meant_for(families):
    """The names of the libraries that are asked for any of the families."""
    return [cls.name for cls in CLASSES if set(cls.families) & set(families)]
