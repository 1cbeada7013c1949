"""A NumPy dtype for arrays of bfloat16: that of ml_dtypes, or, where this is not installed, one of this package."""
cimport numpy as cnp

import numpy as np

cnp.import_array()

cdef extern from "_bfloat16.h":
    object register_bfloat16(object scalar_type)

cdef object known = None


def dtype():
    """The dtype, registered with NumPy by the first call."""
    global known
    if known is None:
        try:
            from ml_dtypes import bfloat16
            known = np.dtype(bfloat16)
        except ImportError:
            known = own()
    return known


cdef object registered = None


def own():
    """This package's dtype, whether ml_dtypes is installed or not."""
    global registered
    if registered is None:
        registered = register_bfloat16(type("bfloat16", (np.generic,), {"__module__": __name__}))
    return registered
