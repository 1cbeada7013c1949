# scaled_dot_product_attention: the call.

cdef int describe_term(object array, Term* term) except -1:
    cdef const unsigned char[:, :, :, :] boolean
    cdef const elem[:, :, :, :] element
    cdef const real[:, :, :, :] number
    cdef Py_ssize_t* strides
    cdef int k
    if array.itemsize == 1:
        boolean = array
        term.kind, term.data, strides = BOOLEAN, <const char*>&boolean[0, 0, 0, 0], boolean.strides
    elif array.itemsize == sizeof(real):
        number = array
        term.kind, term.data, strides = REAL, <const char*>&number[0, 0, 0, 0], number.strides
    else:
        element = array
        term.kind, term.data, strides = ELEMENT, <const char*>&element[0, 0, 0, 0], element.strides
    for k in range(4):
        term.stride[k] = strides[k]
    return 0

cdef inline void in_elements(Py_ssize_t* to, const Py_ssize_t* strides) noexcept nogil:
    cdef int k
    for k in range(3):
        to[k] = strides[k] // <Py_ssize_t>sizeof(elem)

def attention(const elem[:, :, :, :] query, const elem[:, :, :, :] key, const elem[:, :, :, :] value,
              elem[:, :, :, :] out, tuple terms, const double[:] scale, const long long[:] offset, Py_ssize_t left,
              Py_ssize_t right, const long long[:] lengths, double softcap, const double[:, :] slopes,
              const double[:] sinks, real[:, :, :] lse, real[:, :, :] entropy, int threads):
    """See Attention for the shapes. Elements of a row lie side by side; `out` is apart from all inputs.

    A query or `out` of reals beside keys and values of 16 bits is seen as 16-bit elements, twice as many in a row.
    """
    cdef Attention a
    cdef Py_ssize_t t
    a.batch, a.heads, a.length = query.shape[0], query.shape[1], query.shape[2]
    a.key_heads, a.keys, a.width, a.value_width = key.shape[1], key.shape[2], key.shape[3], value.shape[3]
    a.query_is_real, a.out_is_real = query.shape[3] != a.width, out.shape[3] != a.value_width
    a.shared = a.heads // a.key_heads
    a.query, a.key, a.value, a.out = &query[0, 0, 0, 0], &key[0, 0, 0, 0], &value[0, 0, 0, 0], &out[0, 0, 0, 0]
    in_elements(a.query_stride, query.strides)
    in_elements(a.key_stride, key.strides)
    in_elements(a.value_stride, value.strides)
    in_elements(a.out_stride, out.strides)
    a.terms = <int>len(terms)
    for t in range(len(terms)):
        describe_term(terms[t], &a.term[t])
    a.left, a.right, a.softcap = left, right, softcap
    a.scale, a.offset = &scale[0], &offset[0]
    a.lengths = NULL if lengths is None else &lengths[0]
    a.slopes = NULL if slopes is None else &slopes[0, 0]
    a.sinks = NULL if sinks is None else &sinks[0]
    a.lse = NULL if lse is None else &lse[0, 0, 0]
    a.entropy = NULL if entropy is None else &entropy[0, 0, 0]
    if is_decoding(&a):
        decode(&a, threads)
    else:
        attend_all(&a, threads)
