"""The fast path, for calls that take less time than Python needs to look at their arguments.

`contiguous` brings contiguous arrays of native floats to their kernel without another Python object;
`attention_inputs` and `attention_result` look at attention's arrays. Each returns None for a call that it does not
cover, and softmax.py or attention.py then takes the slow path, which checks, explains and raises. `as_strided` and
`broadcast_to` make the views that both paths need, at a twentieth of the cost of NumPy's own, which are in Python.
"""
cimport numpy as cnp
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_CheckExact
from cpython.ref cimport Py_INCREF, PyObject

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    bint PyArray_CheckExact(object)
    bint PyArray_ISCARRAY(cnp.ndarray)
    bint PyArray_ISCARRAY_RO(cnp.ndarray)
    bint PyArray_ISBEHAVED_RO(cnp.ndarray)
    cnp.ndarray PyArray_NewFromDescr(type subtype, cnp.dtype descr, int ndim, const cnp.npy_intp* shape,
                                     const cnp.npy_intp* strides, void* data, int flags, PyObject* like)

# result, x, y, outer, n, inner, temperature, threads, nontemporal; see softmax.pxi
ctypedef int (*Contiguous)(int, const void*, void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double, int, bint) except -1

cdef Contiguous f16_rows = NULL
cdef Contiguous f32_rows = NULL
cdef Contiguous f64_rows = NULL
cdef Py_ssize_t nontemporal_bytes = 0
cdef object threads_for = None

cdef enum:
    SERIAL_ELEMENTS = 1 << 14                # elements that one thread does, without asking
    LOGSUMEXP = 2                   # this result and those after it are one number a row
    MAX_DIMENSIONS = 64            # NumPy's own limit


def use(size_t f16, size_t f32, size_t f64):
    """The kernels' addresses, for the instruction set in use."""
    global f16_rows, f32_rows, f64_rows
    f16_rows, f32_rows, f64_rows = <Contiguous>f16, <Contiguous>f32, <Contiguous>f64


def configure(how_many_threads, Py_ssize_t nontemporal_from):
    """threads_for(elements), and the size in bytes from which results are written past the caches."""
    global threads_for, nontemporal_bytes
    threads_for, nontemporal_bytes = how_many_threads, nontemporal_from


cdef inline bint same_or_no_overlap(const char* x, const char* y, Py_ssize_t x_bytes,
                                    Py_ssize_t y_bytes) noexcept nogil:
    return x == y or x + x_bytes <= y or y + y_bytes <= x


cdef cnp.ndarray view(cnp.ndarray array, int ndim, const cnp.npy_intp* shape, const cnp.npy_intp* strides):
    """The memory from the array's first element on as another shape; the view keeps the array alive."""
    cdef cnp.dtype dtype = <cnp.dtype>cnp.PyArray_DESCR(array)
    Py_INCREF(dtype)                # the new array steals this reference
    seen = PyArray_NewFromDescr(cnp.ndarray, dtype, ndim, shape, strides, cnp.PyArray_DATA(array),
                                cnp.PyArray_FLAGS(array) & cnp.NPY_ARRAY_WRITEABLE, NULL)
    cnp.set_array_base(seen, array)
    return seen


def as_strided(cnp.ndarray array, tuple shape, tuple strides):
    """np.lib.stride_tricks.as_strided(array, shape, strides), which checks as little."""
    cdef cnp.npy_intp[MAX_DIMENSIONS] sizes, steps
    cdef Py_ssize_t i, ndim = len(shape)
    if ndim != len(strides) or ndim > MAX_DIMENSIONS:
        raise ValueError(f"{ndim} dimensions, {len(strides)} strides")
    for i in range(ndim):
        sizes[i], steps[i] = shape[i], strides[i]
    return view(array, <int>ndim, sizes, steps)


def broadcast_to(cnp.ndarray array, tuple shape):
    """np.broadcast_to(array, shape), but writeable where the array is; a ValueError where it does not fit."""
    cdef cnp.npy_intp[MAX_DIMENSIONS] sizes, steps
    cdef Py_ssize_t i, k, ndim = len(shape), added = ndim - cnp.PyArray_NDIM(array)
    cdef bint same = added == 0
    if added < 0 or ndim > MAX_DIMENSIONS:
        raise ValueError("more dimensions than there is room for")
    for i in range(ndim):
        k = i - added
        sizes[i], steps[i] = shape[i], 0
        if k >= 0 and cnp.PyArray_DIM(array, k) != 1:
            steps[i] = cnp.PyArray_STRIDE(array, k)
            if cnp.PyArray_DIM(array, k) != sizes[i]:
                raise ValueError(f"a dimension of {cnp.PyArray_DIM(array, k)}, not {sizes[i]}")
        same = same and sizes[i] == cnp.PyArray_DIM(array, k)
    return array if same else view(array, <int>ndim, sizes, steps)


cdef cnp.ndarray of_four_dimensions(x):
    """x with dimensions of one before its own, or None where an attention kernel does not take it as it is."""
    cdef cnp.ndarray array
    cdef cnp.npy_intp[4] shape = [1, 1, 1, 1]
    cdef cnp.npy_intp[4] strides = [0, 0, 0, 0]
    cdef int i, ndim, added
    cdef Py_ssize_t itemsize
    if not PyArray_CheckExact(x):
        return None
    array = <cnp.ndarray>x
    ndim, itemsize = cnp.PyArray_NDIM(array), cnp.PyArray_ITEMSIZE(array)
    added = 4 - ndim
    if not 2 <= ndim <= 4 or not PyArray_ISBEHAVED_RO(array) or cnp.PyArray_STRIDE(array, ndim - 1) != itemsize:
        return None
    for i in range(ndim):
        shape[added + i], strides[added + i] = cnp.PyArray_DIM(array, i), cnp.PyArray_STRIDE(array, i)
        if shape[added + i] == 0 or strides[added + i] % itemsize:
            return None
    return view(array, 4, shape, strides) if added else array


def attention_inputs(query, key, value, bint enable_gqa):
    """(q, k, v, (batch,), heads, keys, width, shape of the result, added), as attention._made_to_fit returns.

    None if the arrays' strides or shapes are not those of most calls, or something is empty.
    """
    cdef cnp.ndarray q = of_four_dimensions(query), k = of_four_dimensions(key), v = of_four_dimensions(value)
    cdef const cnp.npy_intp *of_q
    cdef const cnp.npy_intp *of_k
    cdef const cnp.npy_intp *of_v
    if q is None or k is None or v is None:
        return None
    of_q, of_k, of_v = cnp.PyArray_DIMS(q), cnp.PyArray_DIMS(k), cnp.PyArray_DIMS(v)
    if (cnp.PyArray_NDIM(query) != cnp.PyArray_NDIM(key) or cnp.PyArray_NDIM(key) != cnp.PyArray_NDIM(value)
            or cnp.PyArray_DESCR(q) != cnp.PyArray_DESCR(k) or cnp.PyArray_DESCR(k) != cnp.PyArray_DESCR(v)
            or of_q[0] != of_k[0] or of_k[0] != of_v[0] or of_k[1] != of_v[1] or of_k[2] != of_v[2]
            or of_q[3] != of_k[3]
            or not (of_k[1] == of_q[1] or of_k[1] == 1 or (enable_gqa and of_q[1] % of_k[1] == 0))):
        return None
    return (q, k, v, (of_q[0],), of_q[1], of_k[2], of_q[3], (of_q[0], of_q[1], of_q[2], of_v[3]),
            4 - cnp.PyArray_NDIM(query))


cdef void extent(cnp.ndarray array, const char** first, const char** end) noexcept:
    """The memory between an array's first and last element, whatever the signs of its strides."""
    cdef Py_ssize_t i, last
    first[0] = <const char*>cnp.PyArray_DATA(array)
    end[0] = first[0] + cnp.PyArray_ITEMSIZE(array)
    for i in range(cnp.PyArray_NDIM(array)):
        last = (cnp.PyArray_DIM(array, i) - 1) * cnp.PyArray_STRIDE(array, i)
        if last < 0:
            first[0] += last
        else:
            end[0] += last


cdef bint may_overlap_itself(cnp.ndarray array) noexcept:
    """Whether elements may share memory: False where each stride steps over all that smaller strides reach."""
    cdef Py_ssize_t reached = cnp.PyArray_ITEMSIZE(array), stride, smallest
    cdef int ndim = cnp.PyArray_NDIM(array), _turn, i, next_
    cdef unsigned long long done = 0
    for _turn in range(ndim):
        next_ = -1
        for i in range(ndim):
            stride = abs(cnp.PyArray_STRIDE(array, i))
            if not (done >> i) & 1 and (next_ < 0 or stride < smallest):
                next_, smallest = i, stride
        done |= <unsigned long long>1 << next_
        if cnp.PyArray_DIM(array, next_) > 1:
            if smallest < reached:
                return True
            reached += smallest * (cnp.PyArray_DIM(array, next_) - 1)
    return False


cdef inline bint no_overlap(cnp.ndarray x, const char* first, const char* end) noexcept:
    cdef const char *x_first
    cdef const char *x_end
    extent(x, &x_first, &x_end)
    return x_end <= first or end <= x_first


def attention_result(out, cnp.ndarray q, cnp.ndarray k, cnp.ndarray v, tuple shape, int added):
    """`out` in four dimensions for a kernel to write to; None where that takes more checks.

    q, k, v, shape and added are what attention_inputs returned. An `out` that may overlap the inputs or itself, or does
    not fit, is left to attention.py.
    """
    cdef cnp.ndarray y = of_four_dimensions(out)
    cdef const char *first
    cdef const char *end
    cdef int i
    if (y is None or 4 - cnp.PyArray_NDIM(out) != added or cnp.PyArray_DESCR(y) != cnp.PyArray_DESCR(q)
            or not cnp.PyArray_ISWRITEABLE(out)):
        return None
    for i in range(4):
        if cnp.PyArray_DIM(y, i) != <Py_ssize_t>shape[i]:
            return None
    if may_overlap_itself(y):
        return None
    extent(y, &first, &end)
    return y if no_overlap(q, first, end) and no_overlap(k, first, end) and no_overlap(v, first, end) else None


def contiguous(int result, x, axis, temperature, out):
    """The result for a C-contiguous array along one axis or all of it, or None if this is not such a call."""
    cdef cnp.ndarray array, y
    cdef Contiguous rows
    cdef int kind, ndim, a, i, overflow = 0, threads = 1
    cdef long number
    cdef Py_ssize_t outer = 1, n = 1, inner = 1, size
    cdef double t = 1.0
    cdef cnp.npy_intp* shape
    cdef cnp.npy_intp[MAX_DIMENSIONS] reduced

    if not PyArray_CheckExact(x):
        return None
    array = <cnp.ndarray>x
    kind = cnp.PyArray_TYPE(array)
    if kind == cnp.NPY_FLOAT32:
        rows = f32_rows
    elif kind == cnp.NPY_FLOAT64:
        rows = f64_rows
    elif kind == cnp.NPY_FLOAT16:
        rows = f16_rows
    else:
        return None
    ndim = cnp.PyArray_NDIM(array)
    if ndim == 0 or not PyArray_ISCARRAY_RO(array):
        return None
    shape = cnp.PyArray_DIMS(array)
    size = cnp.PyArray_SIZE(array)
    if size == 0:
        return None

    if axis is None:
        n = size
        a = -1
    elif PyLong_CheckExact(axis):
        number = PyLong_AsLongAndOverflow(axis, &overflow)
        if overflow or number >= ndim or number < -ndim:
            return None
        a = number + ndim if number < 0 else number
        for i in range(a):
            outer *= shape[i]
        n = shape[a]
        for i in range(a + 1, ndim):
            inner *= shape[i]
    else:
        return None

    if temperature is not None:
        if type(temperature) is not float and type(temperature) is not int:
            return None
        if not 1e-30 < temperature < 1e30:
            return None
        t = temperature

    if out is not None:
        if result >= LOGSUMEXP or not PyArray_CheckExact(out):
            return None
        y = <cnp.ndarray>out
        if not PyArray_ISCARRAY(y) or cnp.PyArray_TYPE(y) != kind or cnp.PyArray_NDIM(y) != ndim:
            return None
        for i in range(ndim):
            if cnp.PyArray_DIM(y, i) != shape[i]:
                return None
        if not same_or_no_overlap(<const char*>cnp.PyArray_DATA(array), <const char*>cnp.PyArray_DATA(y),
                                  cnp.PyArray_NBYTES(array), cnp.PyArray_NBYTES(y)):
            return None
    elif result < LOGSUMEXP:
        y = cnp.PyArray_EMPTY(ndim, shape, kind, 0)
    elif axis is None:
        y = cnp.PyArray_EMPTY(0, shape, kind, 0)
    else:
        for i in range(ndim - 1):
            reduced[i] = shape[i if i < a else i + 1]
        y = cnp.PyArray_EMPTY(ndim - 1, reduced, kind, 0)

    if size > SERIAL_ELEMENTS:
        threads = threads_for(size)
    rows(result, cnp.PyArray_DATA(array), cnp.PyArray_DATA(y), outer, n, inner, t, threads,
         cnp.PyArray_NBYTES(y) >= nontemporal_bytes and y is not x and cnp.PyArray_DATA(y) != cnp.PyArray_DATA(array))
    if cnp.PyArray_NDIM(y) == 0:
        return y[()]
    return y
