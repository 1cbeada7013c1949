# scaled_dot_product_attention, varlen_attention and paged_attention: the call.

cdef int describe_bias(object array, ScoreBias* bias) except -1:
    cdef const unsigned char[:, :, :, :] boolean
    cdef const elem[:, :, :, :] element
    cdef const real[:, :, :, :] number
    cdef Py_ssize_t* strides
    cdef int k
    if array.itemsize == 1:
        boolean = array
        bias.kind, bias.data, strides = BIAS_BOOL, <const char*>&boolean[0, 0, 0, 0], boolean.strides
    elif array.itemsize == sizeof(real):
        number = array
        bias.kind, bias.data, strides = BIAS_REAL, <const char*>&number[0, 0, 0, 0], number.strides
    else:
        element = array
        bias.kind, bias.data, strides = BIAS_ELEM, <const char*>&element[0, 0, 0, 0], element.strides
    for k in range(4):
        bias.stride[k] = strides[k]
    return 0

cdef Tensor describe_tensor(const elem[:, :, :, :] array, const long long* first) noexcept:
    """first: of packed sequences, else NULL."""
    cdef Tensor x
    x.data, x.first = <elem*>&array[0, 0, 0, 0], first
    x.batch = array.strides[0] // <Py_ssize_t>sizeof(elem)
    x.head = array.strides[1] // <Py_ssize_t>sizeof(elem)
    x.row = array.strides[2] // <Py_ssize_t>sizeof(elem)
    return x

cdef int describe_attention(AttentionParams* params, const elem[:, :, :, :] query, const elem[:, :, :, :] key,
                            const elem[:, :, :, :] value, const elem[:, :, :, :] out, tuple biases,
                            const double[:] scale, const long long[:] offset, Py_ssize_t left, Py_ssize_t right,
                            const long long[:] lengths, double softcap, const double[:, :] slopes,
                            const double[:] sinks, const long long[:] first_query, const long long[:] first_key,
                            const long long[:, :] pages) except -1:
    cdef const long long* query_rows = NULL if first_query is None else <long long*>&first_query[0]
    cdef const long long* key_rows = NULL if first_key is None else <long long*>&first_key[0]
    cdef Py_ssize_t t
    params.batch, params.heads, params.length = offset.shape[0], query.shape[1], query.shape[2]
    params.key_heads, params.keys = key.shape[1], key.shape[2]
    params.head_dim, params.value_dim = key.shape[3], value.shape[3]
    params.query_is_real, params.out_is_real = query.shape[3] != params.head_dim, out.shape[3] != params.value_dim
    params.queries_per_kv = params.heads // params.key_heads
    params.query, params.key = describe_tensor(query, query_rows), describe_tensor(key, key_rows)
    params.value, params.out = describe_tensor(value, key_rows), describe_tensor(out, query_rows)
    params.biases, params.shared_bias = <int>len(biases), True
    for t in range(len(biases)):
        describe_bias(biases[t], &params.bias[t])
        if params.bias[t].stride[2] != 0 or (params.bias[t].stride[1] != 0 and params.queries_per_kv != 1):
            params.shared_bias = False
    params.left, params.right, params.softcap = left, right, softcap
    params.scale, params.scale_step = <double*>&scale[0], scale.strides[0] // <Py_ssize_t>sizeof(double)
    params.offset = <long long*>&offset[0]
    params.lengths = NULL if lengths is None else <long long*>&lengths[0]
    params.slopes = NULL if slopes is None else <double*>&slopes[0, 0]
    params.sinks = NULL if sinks is None else <double*>&sinks[0]
    params.lse = params.entropy = NULL
    params.statistics_head = params.length
    params.statistics_batch = 0 if query_rows != NULL else params.heads * params.length
    params.table.pages = NULL
    if pages is not None:
        params.table.pages, params.table.most = <long long*>&pages[0, 0], pages.shape[1]
        params.table.page_size = params.keys
    if query_rows != NULL:
        params.length = longest(query_rows, params.batch)
        params.keys = longest(key_rows, params.batch)
    if pages is not None:
        params.keys = pages.shape[1] * params.table.page_size
    return 0

cdef Py_ssize_t longest(const long long* first, Py_ssize_t count) noexcept nogil:
    """Rows of the longest of packed sequences."""
    cdef Py_ssize_t b, rows = 0
    for b in range(count):
        rows = max(rows, <Py_ssize_t>(first[b + 1] - first[b]))
    return rows

def attention(const elem[:, :, :, :] query, const elem[:, :, :, :] key, const elem[:, :, :, :] value,
              elem[:, :, :, :] out, tuple biases, const double[:] scale, const long long[:] offset, Py_ssize_t left,
              Py_ssize_t right, const long long[:] lengths, double softcap, const double[:, :] slopes,
              const double[:] sinks, real[:, :, :] lse, real[:, :, :] entropy, int threads,
              const long long[:] first_query=None, const long long[:] first_key=None, const long long[:, :] pages=None):
    """See AttentionParams for the shapes. Elements of a row are contiguous; `out` is apart from all inputs.

    A query or `out` of reals beside keys and values of 16 bits is seen as 16-bit elements, twice as many in a row.
    first_query, first_key (B + 1,): sequences are packed. pages (B, most), with lengths: keys are in pages. Both as
    kv_layout.pxi says.
    """
    cdef AttentionParams params
    cdef Sequences sequences
    describe_attention(&params, query, key, value, out, biases, scale, offset, left, right, lengths, softcap, slopes,
                       sinks, first_query, first_key, pages)
    params.lse = NULL if lse is None else &lse[0, 0, 0]
    params.entropy = NULL if entropy is None else &entropy[0, 0, 0]
    sequences = order_sequences(&params)
    if sequences.prefills:
        prefill(&params, sequences.prefill, sequences.prefills, threads)
    if sequences.decodes:
        decode(&params, sequences.decode, sequences.decodes, threads)

# for tests: the largest relative error of a weight before its product with values, see pairs.pxi and matrix.pxi
weight_error = 2.0**-16 if MATRIX_UNIT else 2.0**-8 if PAIRED else 0.0
