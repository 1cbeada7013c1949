# scaled_dot_product_attention: the call.

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

cdef Tensor describe_tensor(const elem[:, :, :, :] array) noexcept:
    cdef Tensor x
    x.data = <elem*>&array[0, 0, 0, 0]
    x.batch = array.strides[0] // <Py_ssize_t>sizeof(elem)
    x.head = array.strides[1] // <Py_ssize_t>sizeof(elem)
    x.row = array.strides[2] // <Py_ssize_t>sizeof(elem)
    return x

def attention(const elem[:, :, :, :] query, const elem[:, :, :, :] key, const elem[:, :, :, :] value,
              elem[:, :, :, :] out, tuple biases, const double[:] scale, const long long[:] offset, Py_ssize_t left,
              Py_ssize_t right, const long long[:] lengths, double softcap, const double[:, :] slopes,
              const double[:] sinks, real[:, :, :] lse, real[:, :, :] entropy, int threads):
    """See AttentionParams for the shapes. Elements of a row lie side by side; `out` is apart from all inputs.

    A query or `out` of reals beside keys and values of 16 bits is seen as 16-bit elements, twice as many in a row.
    """
    cdef AttentionParams params
    cdef Py_ssize_t t
    params.batch, params.heads, params.length = query.shape[0], query.shape[1], query.shape[2]
    params.key_heads, params.keys = key.shape[1], key.shape[2]
    params.head_dim, params.value_dim = key.shape[3], value.shape[3]
    params.query_is_real, params.out_is_real = query.shape[3] != params.head_dim, out.shape[3] != params.value_dim
    params.queries_per_kv = params.heads // params.key_heads
    params.query, params.key = describe_tensor(query), describe_tensor(key)
    params.value, params.out = describe_tensor(value), describe_tensor(out)
    params.biases = <int>len(biases)
    for t in range(len(biases)):
        describe_bias(biases[t], &params.bias[t])
    params.left, params.right, params.softcap = left, right, softcap
    params.scale, params.offset = &scale[0], &offset[0]
    params.lengths = NULL if lengths is None else &lengths[0]
    params.slopes = NULL if slopes is None else &slopes[0, 0]
    params.sinks = NULL if sinks is None else &sinks[0]
    params.lse = NULL if lse is None else &lse[0, 0, 0]
    params.entropy = NULL if entropy is None else &entropy[0, 0, 0]
    if uses_decode(&params):
        decode(&params, threads)
    else:
        prefill(&params, threads)
