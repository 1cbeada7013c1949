"""The fast path, for calls so short that checking their arguments in Python would cost more: a result or None.

`rows`, `causal_rows` and `causal_mask` compute functions of the softmax family of a contiguous array of native floats,
without another Python object. `attention_inputs` prepares query, key and value, and `attention_out` prepares `out`.
Each returns None, or `causal_mask` False, for a call that it does not cover; the slow path then checks the arguments,
and raises. `as_strided` and `broadcast_to` make the views that both paths need, in a twentieth of the time that NumPy's
own take, which are written in Python.
"""
cimport numpy as cnp
from cpython.long cimport PyLong_AsLongAndOverflow, PyLong_CheckExact
from cpython.ref cimport Py_INCREF, PyObject

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    int NPY_USERDEF                 # the first number of other packages' dtypes
    bint PyArray_CheckExact(object)
    bint PyArray_ISCARRAY(cnp.ndarray)
    bint PyArray_ISCARRAY_RO(cnp.ndarray)
    bint PyArray_ISBEHAVED_RO(cnp.ndarray)
    cnp.ndarray PyArray_NewFromDescr(type subtype, cnp.dtype descr, int ndim, const cnp.npy_intp* shape,
                                     const cnp.npy_intp* strides, void* data, int flags, PyObject* like)

# The functions of rows, as the kernels number them.
cpdef enum:
    SOFTMAX = 0
    LOG_SOFTMAX = 1
    LOGSUMEXP = 2                   # this one and those after it give one number for each row
    SOFTMAX_ENTROPY = 3

cdef enum:
    SERIAL_ELEMENTS = 1 << 14       # up to this size one thread computes, without a call of threads_for
    MAX_DIMENSIONS = 64             # NumPy's own limit
    MAX_OFFSET = 1 << 30            # of causal masks: the slow path clips larger ones

# The kernels' entry points, in kernels/softmax/softmax.pxi and mask.pxi. Their arguments:
# op, x, y, outer, n, inner, temperature, threads, non-temporal stores
ctypedef int (*ContiguousRows)(int, const void*, void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double, int, bint) except -1
# x, y, matrices, queries, keys, offset, temperature, threads, non-temporal stores
ctypedef int (*CausalRows)(const void*, void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, double, int,
                           bint) except -1
# scores, matrices, queries, keys, offset, value, threads, non-temporal stores
ctypedef int (*CausalMask)(void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, double, int, bint) except -1

cdef struct Kernels:
    ContiguousRows rows
    CausalRows causal_rows
    CausalMask causal_mask

cdef Kernels f16_kernels, bf16_kernels, f32_kernels, f64_kernels
cdef Py_ssize_t nontemporal_bytes = 0
cdef object threads_for = None
cdef int bfloat16_number = -1       # NumPy's number of the dtype, once it has been seen


def use(f16, bf16, f32, f64):
    """The addresses of each dtype's kernels, in the order of Kernels, for the instruction set in use."""
    global f16_kernels, bf16_kernels, f32_kernels, f64_kernels
    f16_kernels, bf16_kernels = kernels_at(f16), kernels_at(bf16)
    f32_kernels, f64_kernels = kernels_at(f32), kernels_at(f64)


cdef Kernels kernels_at(tuple addresses) except *:
    cdef Kernels kernels
    cdef size_t rows, causal_rows, causal_mask
    rows, causal_rows, causal_mask = addresses
    kernels.rows, kernels.causal_rows, kernels.causal_mask = (
        <ContiguousRows>rows, <CausalRows>causal_rows, <CausalMask>causal_mask)
    return kernels


def configure(how_many_threads, Py_ssize_t nontemporal_from):
    """threads_for(elements), and the size in bytes from which results are written with non-temporal stores."""
    global threads_for, nontemporal_bytes
    threads_for, nontemporal_bytes = how_many_threads, nontemporal_from


# ---- dtypes

cdef bint is_bfloat16(cnp.dtype dtype) except -1:
    """bfloat16 belongs to another package, ml_dtypes, and has whatever number NumPy gave it: its name identifies it."""
    global bfloat16_number
    if dtype.type_num == bfloat16_number:
        return True
    if dtype.type_num < NPY_USERDEF or (<object>dtype).itemsize != 2 or (<object>dtype).name != "bfloat16":
        return False
    bfloat16_number = dtype.type_num
    return True


cpdef str tag(cnp.dtype dtype):
    """The tag of a dtype's kernels, in any byte order, or None if there are none."""
    if dtype.type_num == cnp.NPY_FLOAT32:
        return "f32"
    if dtype.type_num == cnp.NPY_FLOAT64:
        return "f64"
    if dtype.type_num == cnp.NPY_FLOAT16:
        return "f16"
    return "bf16" if is_bfloat16(dtype) else None


cdef inline const Kernels* kernels_of(cnp.ndarray array) except? NULL:
    """The kernels for the array's dtype, or NULL if there are none."""
    cdef int number = cnp.PyArray_TYPE(array)
    if number == cnp.NPY_FLOAT32:
        return &f32_kernels
    if number == cnp.NPY_FLOAT64:
        return &f64_kernels
    if number == cnp.NPY_FLOAT16:
        return &f16_kernels
    return &bf16_kernels if is_bfloat16(<cnp.dtype>cnp.PyArray_DESCR(array)) else NULL


# ---- views

cdef cnp.ndarray view(cnp.ndarray array, int ndim, const cnp.npy_intp* shape, const cnp.npy_intp* strides):
    """The memory from the array's first element on as another shape; the view keeps the array alive."""
    cdef cnp.dtype dtype = <cnp.dtype>cnp.PyArray_DESCR(array)
    Py_INCREF(dtype)                # the new array steals this reference
    seen = PyArray_NewFromDescr(cnp.ndarray, dtype, ndim, shape, strides, cnp.PyArray_DATA(array),
                                cnp.PyArray_FLAGS(array) & cnp.NPY_ARRAY_WRITEABLE, NULL)
    cnp.set_array_base(seen, array)
    return seen


def as_strided(cnp.ndarray array, tuple shape, tuple strides):
    """np.lib.stride_tricks.as_strided(array, shape, strides), which checks as little; None if there are not as many
    strides as dimensions, or too many."""
    cdef cnp.npy_intp[MAX_DIMENSIONS] sizes, steps
    cdef Py_ssize_t i, ndim = len(shape)
    if ndim != len(strides) or ndim > MAX_DIMENSIONS:
        return None
    for i in range(ndim):
        sizes[i], steps[i] = shape[i], strides[i]
    return view(array, <int>ndim, sizes, steps)


cpdef cnp.ndarray broadcast_to(cnp.ndarray array, tuple shape):
    """np.broadcast_to(array, shape), but writeable if the array is; None if it does not fit."""
    cdef cnp.npy_intp[MAX_DIMENSIONS] sizes, steps
    cdef Py_ssize_t i, k, ndim = len(shape), added = ndim - cnp.PyArray_NDIM(array)
    cdef bint same = added == 0
    if added < 0 or ndim > MAX_DIMENSIONS:
        return None
    for i in range(ndim):
        k = i - added
        sizes[i], steps[i] = shape[i], 0
        if k >= 0 and cnp.PyArray_DIM(array, k) != 1:
            steps[i] = cnp.PyArray_STRIDE(array, k)
            if cnp.PyArray_DIM(array, k) != sizes[i]:
                return None
        same = same and sizes[i] == cnp.PyArray_DIM(array, k)
    return array if same else view(array, <int>ndim, sizes, steps)


# ---- overlap

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


cdef bint no_overlap(cnp.ndarray x, cnp.ndarray y) noexcept:
    """Whether the arrays' extents are disjoint."""
    cdef const char *x_first
    cdef const char *x_end
    cdef const char *y_first
    cdef const char *y_end
    extent(x, &x_first, &x_end)
    extent(y, &y_first, &y_end)
    return x_end <= y_first or y_end <= x_first


cdef bint elements_may_overlap(cnp.ndarray array) noexcept:
    """False if each stride is beyond the extent of the smaller strides, so that no two elements share memory."""
    cdef Py_ssize_t reached = cnp.PyArray_ITEMSIZE(array), stride, smallest = 0
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


# ---- attention

cdef class AttentionInputs:
    """Query, key and value as the kernels take them, and their geometry.

    Attributes
    ----------
    q, k, v : ndarray, (*batch, heads, L, head_dim), (*batch, key heads, keys, head_dim), (*batch, key heads, keys, Ev)
        Native and aligned; strides of whole elements, the elements of the last dimension adjacent.
    tag : str or None
        That of the kernels; None if the reference computes the result.
    batch, out_shape : tuple of int
        The dimensions before the heads, one at least; the shape of the result.
    heads, keys, head_dim : int
    rows : int
        The rows of queries that share a key head.
    products : int
        Multiplications of numbers, if every query sees every key; 2**62 for more than that.
    added : int
        How many leading dimensions of length 1 the caller's arrays do not have, and the results lose again.
    """
    cdef readonly cnp.ndarray q, k, v
    cdef readonly str tag
    cdef readonly tuple batch, out_shape
    cdef readonly Py_ssize_t heads, keys, head_dim, rows, products
    cdef readonly int added

    def __cinit__(self, cnp.ndarray q not None, cnp.ndarray k not None, cnp.ndarray v not None, int added):
        cdef int ndim = cnp.PyArray_NDIM(q)
        cdef const cnp.npy_intp* shape = cnp.PyArray_DIMS(q)
        cdef double products
        cdef int i
        self.q, self.k, self.v, self.added = q, k, v, added
        self.tag = tag(<cnp.dtype>cnp.PyArray_DESCR(k))
        self.heads, self.keys, self.head_dim = shape[ndim - 3], cnp.PyArray_DIM(k, ndim - 2), shape[ndim - 1]
        self.rows = self.heads // max(cnp.PyArray_DIM(k, ndim - 3), 1) * shape[ndim - 2]
        products = <double>self.keys * (shape[ndim - 1] + cnp.PyArray_DIM(v, ndim - 1))
        for i in range(ndim - 1):
            products *= shape[i]
        self.products = <Py_ssize_t>min(products, <double>(<Py_ssize_t>1 << 62))
        if ndim == 4:
            self.batch = (shape[0],)
            self.out_shape = (shape[0], shape[1], shape[2], cnp.PyArray_DIM(v, 3))
        else:
            self.batch = tuple([shape[i] for i in range(ndim - 3)])
            self.out_shape = (*self.batch, shape[ndim - 3], shape[ndim - 2], cnp.PyArray_DIM(v, ndim - 1))


cdef cnp.ndarray of_four_dimensions(x):
    """x with leading dimensions of length 1, or None if an attention kernel does not take it as it is."""
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
    """AttentionInputs of arrays of one dtype and number of dimensions; None if they are others, or one is empty."""
    cdef cnp.ndarray q = of_four_dimensions(query), k = of_four_dimensions(key), v = of_four_dimensions(value)
    cdef const cnp.npy_intp *of_q
    cdef const cnp.npy_intp *of_k
    cdef const cnp.npy_intp *of_v
    if q is None or k is None or v is None or kernels_of(q) == NULL:
        return None
    of_q, of_k, of_v = cnp.PyArray_DIMS(q), cnp.PyArray_DIMS(k), cnp.PyArray_DIMS(v)
    if (cnp.PyArray_NDIM(query) != cnp.PyArray_NDIM(key) or cnp.PyArray_NDIM(key) != cnp.PyArray_NDIM(value)
            or cnp.PyArray_DESCR(q) != cnp.PyArray_DESCR(k) or cnp.PyArray_DESCR(k) != cnp.PyArray_DESCR(v)
            or of_q[0] != of_k[0] or of_k[0] != of_v[0] or of_k[1] != of_v[1] or of_k[2] != of_v[2]
            or of_q[3] != of_k[3]
            or not (of_k[1] == of_q[1] or of_k[1] == 1 or (enable_gqa and of_q[1] % of_k[1] == 0))):
        return None
    return AttentionInputs(q, k, v, 4 - cnp.PyArray_NDIM(query))


def attention_out(AttentionInputs inputs not None, out):
    """The array of four dimensions that a kernel writes to: new for out=None, else a view of `out`.

    None if `out` may overlap the inputs or itself, or does not fit.
    """
    cdef cnp.ndarray y
    cdef cnp.npy_intp[4] shape
    cdef int i
    if out is None:
        for i in range(4):
            shape[i] = inputs.out_shape[i]
        return cnp.PyArray_EMPTY(4, shape, cnp.PyArray_TYPE(inputs.q), 0)
    y = of_four_dimensions(out)
    if (y is None or 4 - cnp.PyArray_NDIM(out) != inputs.added or cnp.PyArray_DESCR(y) != cnp.PyArray_DESCR(inputs.q)
            or not cnp.PyArray_ISWRITEABLE(out)):
        return None
    for i in range(4):
        if cnp.PyArray_DIM(y, i) != <Py_ssize_t>inputs.out_shape[i]:
            return None
    if (elements_may_overlap(y) or not no_overlap(y, inputs.q) or not no_overlap(y, inputs.k)
            or not no_overlap(y, inputs.v)):
        return None
    return y


# ---- the softmax family

cdef inline const Kernels* kernels_taking(x) except? NULL:
    """The kernels that take x as it is, a C-contiguous array with elements; NULL for any other x."""
    if not PyArray_CheckExact(x) or not PyArray_ISCARRAY_RO(<cnp.ndarray>x):
        return NULL
    if cnp.PyArray_NDIM(<cnp.ndarray>x) == 0 or cnp.PyArray_SIZE(<cnp.ndarray>x) == 0:
        return NULL
    return kernels_of(<cnp.ndarray>x)


cdef inline int axis_from_zero(axis, int ndim) except -2:
    """-1 if it is not an int, or out of range."""
    cdef int overflow = 0
    cdef long given
    if not PyLong_CheckExact(axis):
        return -1
    given = PyLong_AsLongAndOverflow(axis, &overflow)
    if overflow or given >= ndim or given < -ndim:
        return -1
    return <int>(given + ndim if given < 0 else given)


cdef inline double temperature_of(temperature) except -1:
    """The temperature of all rows; 0 for one that a kernel does not take."""
    cdef double t
    if type(temperature) is int:
        if not 0 < temperature < 1 << 62:       # a larger int may not fit into a double
            return 0
    elif type(temperature) is not float:
        return 0
    t = temperature
    return t if 1e-30 < t < 1e30 else 0         # 0 for NaN


cdef cnp.ndarray fitting_out(cnp.ndarray x, int ndim, const cnp.npy_intp* shape, out, bint in_place):
    """`out`, or None if it does not fit or may overlap x. in_place: it may be x itself."""
    cdef cnp.ndarray y
    cdef int i
    if not PyArray_CheckExact(out):
        return None
    y = <cnp.ndarray>out
    if not PyArray_ISCARRAY(y) or cnp.PyArray_TYPE(y) != cnp.PyArray_TYPE(x) or cnp.PyArray_NDIM(y) != ndim:
        return None
    for i in range(ndim):
        if cnp.PyArray_DIM(y, i) != shape[i]:
            return None
    if (not in_place or cnp.PyArray_DATA(y) != cnp.PyArray_DATA(x)) and not no_overlap(y, x):
        return None
    return y


cdef inline bint is_nontemporal(cnp.ndarray x, cnp.ndarray y) noexcept:
    return cnp.PyArray_NBYTES(y) >= nontemporal_bytes and cnp.PyArray_DATA(y) != cnp.PyArray_DATA(x)


def rows(int op, x, axis, temperature, where=None, dtype=None, out=None, dim=None, bint keepdims=False):
    """The result for a C-contiguous array along one axis or all of it; None for any other call."""
    cdef cnp.ndarray array, y
    cdef const Kernels* kernels
    cdef int ndim, reduced_axis = -1, i, threads = 1
    cdef Py_ssize_t outer = 1, n = 1, inner = 1, size
    cdef double t
    cdef cnp.npy_intp* shape
    cdef cnp.npy_intp[MAX_DIMENSIONS] reduced

    if where is not None or dtype is not None or dim is not None:
        return None
    kernels = kernels_taking(x)
    if kernels == NULL:
        return None
    array = <cnp.ndarray>x
    ndim, size, shape = cnp.PyArray_NDIM(array), cnp.PyArray_SIZE(array), cnp.PyArray_DIMS(array)

    if axis is None:
        n = size
    else:
        reduced_axis = axis_from_zero(axis, ndim)
        if reduced_axis < 0:
            return None
        for i in range(reduced_axis):
            outer *= shape[i]
        n = shape[reduced_axis]
        for i in range(reduced_axis + 1, ndim):
            inner *= shape[i]
    t = temperature_of(temperature)
    if t == 0:
        return None

    if op >= LOGSUMEXP:
        if keepdims:
            for i in range(ndim):
                reduced[i] = 1 if axis is None or i == reduced_axis else shape[i]
        else:                                   # the shape without the axis
            ndim = 0 if axis is None else ndim - 1
            for i in range(ndim):
                reduced[i] = shape[i if i < reduced_axis else i + 1]
        shape = reduced
    if out is None:
        y = cnp.PyArray_EMPTY(ndim, shape, cnp.PyArray_TYPE(array), 0)
    else:
        y = fitting_out(array, ndim, shape, out, op < LOGSUMEXP)
        if y is None:
            return None
    if size > SERIAL_ELEMENTS:
        threads = threads_for(size)
    kernels.rows(op, cnp.PyArray_DATA(array), cnp.PyArray_DATA(y), outer, n, inner, t, threads,
                 is_nontemporal(array, y))
    return y if ndim > 0 or out is not None else y[()]


cdef struct CausalShape:
    Py_ssize_t matrices, queries, keys, offset


cdef bint find_causal_shape(cnp.ndarray scores, offset, CausalShape* shape) except -1:
    """Sets `shape`; returns False if the scores are no matrices, or the offset is not an int of the usual size."""
    cdef int ndim = cnp.PyArray_NDIM(scores), overflow = 0
    cdef long given_offset
    if ndim < 2 or not PyLong_CheckExact(offset):
        return False
    given_offset = PyLong_AsLongAndOverflow(offset, &overflow)
    if overflow or not -MAX_OFFSET <= given_offset <= MAX_OFFSET:
        return False
    shape.queries, shape.keys = cnp.PyArray_DIM(scores, ndim - 2), cnp.PyArray_DIM(scores, ndim - 1)
    shape.matrices, shape.offset = cnp.PyArray_SIZE(scores) // (shape.queries * shape.keys), given_offset
    return True


def causal_rows(scores, offset, temperature, dtype, out):
    """causal_softmax of a C-contiguous array; None for any other call."""
    cdef cnp.ndarray x, y
    cdef const Kernels* kernels
    cdef int threads = 1
    cdef CausalShape shape
    cdef Py_ssize_t size
    cdef double t
    if dtype is not None:
        return None
    kernels = kernels_taking(scores)
    if kernels == NULL:
        return None
    x, t = <cnp.ndarray>scores, temperature_of(temperature)
    if t == 0 or not find_causal_shape(x, offset, &shape):
        return None
    if out is None:
        y = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x), 0)
    else:
        y = fitting_out(x, cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), out, True)
        if y is None:
            return None
    size = cnp.PyArray_SIZE(x)
    if size > SERIAL_ELEMENTS:
        threads = threads_for(size)
    kernels.causal_rows(cnp.PyArray_DATA(x), cnp.PyArray_DATA(y), shape.matrices, shape.queries, shape.keys,
                        shape.offset, t, threads, is_nontemporal(x, y))
    return y


def causal_mask(scores, offset, fill_value):
    """Does causal_mask_ for a C-contiguous array, and returns whether it did: not for any other call."""
    cdef cnp.ndarray x
    cdef const Kernels* kernels = kernels_taking(scores)
    cdef int threads = 1
    cdef CausalShape shape
    if kernels == NULL or type(fill_value) is not float:
        return False
    x = <cnp.ndarray>scores
    if not cnp.PyArray_ISWRITEABLE(x) or not find_causal_shape(x, offset, &shape):
        return False
    if cnp.PyArray_SIZE(x) > SERIAL_ELEMENTS:
        threads = threads_for(cnp.PyArray_SIZE(x) // 2)
    kernels.causal_mask(cnp.PyArray_DATA(x), shape.matrices, shape.queries, shape.keys, shape.offset, fill_value,
                        threads, cnp.PyArray_NBYTES(x) >= nontemporal_bytes)
    return True


def gradient_operands(grad, y, axis, temperature, out):
    """(tag, y, grad, dx as the gradient's kernel takes them, (outer, n, inner); dx; whether it is y or grad).

    For C-contiguous arrays of one dtype and shape, along one axis or all, at temperature 1; None for any other call.
    """
    cdef cnp.ndarray x, g, dx
    cdef int number, ndim, reduced_axis = -1, i
    cdef bint in_place
    cdef cnp.npy_intp* shape
    cdef cnp.npy_intp[3] sizes = [1, 1, 1]

    if not PyArray_CheckExact(y) or not PyArray_CheckExact(grad) or not type(temperature) in (float, int):
        return None
    x, g = <cnp.ndarray>y, <cnp.ndarray>grad
    number, ndim, shape = cnp.PyArray_TYPE(x), cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x)
    if (temperature != 1 or ndim == 0 or cnp.PyArray_SIZE(x) == 0 or not PyArray_ISCARRAY_RO(x)
            or not PyArray_ISCARRAY_RO(g) or kernels_of(x) == NULL or not same_kind(x, g)):
        return None
    if axis is not None:
        reduced_axis = axis_from_zero(axis, ndim)
        if reduced_axis < 0:
            return None
    for i in range(ndim):
        sizes[1 if axis is None or i == reduced_axis else 0 if i < reduced_axis else 2] *= shape[i]

    in_place = False
    if out is None:
        dx = cnp.PyArray_EMPTY(ndim, shape, number, 0)
    else:
        if not PyArray_CheckExact(out):
            return None
        dx = <cnp.ndarray>out
        if not PyArray_ISCARRAY(dx) or not same_kind(x, dx):
            return None
        for array in (x, g):
            if cnp.PyArray_DATA(dx) == cnp.PyArray_DATA(array):
                in_place = True
            elif not no_overlap(dx, array):
                return None
    return (tag(<cnp.dtype>cnp.PyArray_DESCR(x)), of_rows(x, sizes), of_rows(g, sizes), of_rows(dx, sizes), dx,
            in_place)


def loss_operands(logits, target, axis, ignore_index, grad_into, bint has_grad):
    """(tag; logits as the kernel of cross_entropy takes them, (outer, n, inner); classes (outer, inner), -1 where
    ignored; how many are not; the gradient as the kernel takes it, and as an array, or None; whether it is the logits).

    For C-contiguous logits and int64 class numbers, of which not all are ignored; None for any other call, also for a
    wrong class number.
    """
    cdef cnp.ndarray x, classes, kept_classes, dx = None
    cdef int ndim, reduced_axis, i, overflow = 0
    cdef long ignored
    cdef long long one
    cdef Py_ssize_t count, k, kept = 0
    cdef bint in_place = False
    cdef cnp.npy_intp* shape
    cdef cnp.npy_intp[3] sizes = [1, 1, 1]
    cdef cnp.npy_intp[2] row_sizes, row_strides
    cdef const long long* numbers
    cdef long long* kept_numbers

    if kernels_taking(logits) == NULL or not PyArray_CheckExact(target) or not PyLong_CheckExact(ignore_index):
        return None
    x, classes = <cnp.ndarray>logits, <cnp.ndarray>target
    ndim, shape = cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x)
    reduced_axis = axis_from_zero(axis, ndim)
    if reduced_axis < 0:
        return None
    ignored = PyLong_AsLongAndOverflow(ignore_index, &overflow)
    if (overflow or cnp.PyArray_TYPE(classes) != cnp.NPY_INT64 or not PyArray_ISCARRAY_RO(classes)
            or cnp.PyArray_NDIM(classes) != ndim - 1):
        return None
    for i in range(ndim):
        sizes[1 if i == reduced_axis else 0 if i < reduced_axis else 2] *= shape[i]
        if i != reduced_axis and cnp.PyArray_DIM(classes, i if i < reduced_axis else i - 1) != shape[i]:
            return None

    count, numbers = sizes[0] * sizes[2], <const long long*>cnp.PyArray_DATA(classes)
    for k in range(count):
        one = numbers[k]
        if one != ignored:
            if not 0 <= one < sizes[1]:
                return None
            kept += 1
    if kept == 0:
        return None
    if kept < count:
        kept_classes = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(classes), cnp.PyArray_DIMS(classes), cnp.NPY_INT64, 0)
        kept_numbers = <long long*>cnp.PyArray_DATA(kept_classes)
        for k in range(count):
            kept_numbers[k] = -1 if numbers[k] == ignored else numbers[k]
        classes = kept_classes
    if grad_into is not None:
        dx = fitting_out(x, ndim, shape, grad_into, True)
        if dx is None or not no_overlap(dx, <cnp.ndarray>target):
            return None
        in_place = cnp.PyArray_DATA(dx) == cnp.PyArray_DATA(x)
    elif has_grad:
        dx = cnp.PyArray_EMPTY(ndim, shape, cnp.PyArray_TYPE(x), 0)
    row_sizes, row_strides = [sizes[0], sizes[2]], [sizes[2] * 8, 8]
    return (tag(<cnp.dtype>cnp.PyArray_DESCR(x)), of_rows(x, sizes), view(classes, 2, row_sizes, row_strides), kept,
            None if dx is None else of_rows(dx, sizes), dx, in_place)


cdef bint same_kind(cnp.ndarray x, cnp.ndarray y) noexcept:
    """Whether both have one dtype and one shape."""
    cdef int i
    if cnp.PyArray_TYPE(x) != cnp.PyArray_TYPE(y) or cnp.PyArray_NDIM(x) != cnp.PyArray_NDIM(y):
        return False
    for i in range(cnp.PyArray_NDIM(x)):
        if cnp.PyArray_DIM(x, i) != cnp.PyArray_DIM(y, i):
            return False
    return True


cdef cnp.ndarray of_rows(cnp.ndarray array, const cnp.npy_intp* sizes):
    """A C-contiguous array with three dimensions; 16-bit floats by their bits."""
    cdef Py_ssize_t size = cnp.PyArray_ITEMSIZE(array)
    cdef cnp.npy_intp[3] strides = [sizes[1] * sizes[2] * size, sizes[2] * size, size]
    cdef cnp.ndarray rows = view(array, 3, sizes, strides)
    return rows.view("u2") if size == 2 else rows
