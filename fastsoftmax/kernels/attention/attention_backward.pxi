# scaled_dot_product_attention_backward and varlen_attention_backward: the call.

def attention_grad_splits(Py_ssize_t keys):
    """The number of splits of so many keys: the last dimension of dslopes."""
    return grad_splits(keys)

def attention_backward(const elem[:, :, :, :] grad_out, const elem[:, :, :, :] query, const elem[:, :, :, :] key,
                       const elem[:, :, :, :] value, const elem[:, :, :, :] out, const real[:, :, :] lse,
                       tuple biases, const double[:] scale, const long long[:] offset, Py_ssize_t left,
                       Py_ssize_t right, const long long[:] lengths, double softcap, const double[:, :] slopes,
                       const double[:] sinks, const real[:, :, :] grad_lse, elem[:, :, :, :] dquery,
                       elem[:, :, :, :] dkey, elem[:, :, :, :] dvalue, real[:, :, :] delta, double[:, :] dscale,
                       tuple dbiases, double[:, :] dsinks, double[:, :, :] dslopes, bint in_order, int threads,
                       const long long[:] first_query=None, const long long[:] first_key=None):
    """See BackwardParams for the shapes; lse, grad_lse, delta, dscale, dsinks and dslopes are C-contiguous.

    Gradients of query, key and value may hold reals beside keys of 16 bits, as `attention` says of query and out.
    dbiases: arrays of reals or doubles (B, Hq, L, S), added to; with strides of 0 where the bias broadcasts. They may
    end where the longest of lengths does. in_order: tasks may add to the same elements of them, so one thread runs all.
    dscale and dslopes are added to. first_query, first_key: as `attention` says.
    """
    cdef BackwardParams p
    cdef const long long* query_rows
    cdef const long long* key_rows
    cdef real[:, :, :, :] reals
    cdef double[:, :, :, :] doubles
    cdef Py_ssize_t* strides
    cdef Py_ssize_t t
    cdef int k
    describe_attention(&p.forward, query, key, value, out, biases, scale, offset, left, right, lengths, softcap, slopes,
                       sinks, first_query, first_key, None)
    query_rows, key_rows = p.forward.query.first, p.forward.key.first
    p.grad_out, p.grad_is_real = describe_tensor(grad_out, query_rows), grad_out.shape[3] != value.shape[3]
    p.dquery, p.dquery_is_real = describe_tensor(dquery, query_rows), dquery.shape[3] != key.shape[3]
    p.dkey, p.dkey_is_real = describe_tensor(dkey, key_rows), dkey.shape[3] != key.shape[3]
    p.dvalue, p.dvalue_is_real = describe_tensor(dvalue, key_rows), dvalue.shape[3] != value.shape[3]
    p.lse, p.delta = <real*>&lse[0, 0, 0], &delta[0, 0, 0]
    p.grad_lse = NULL if grad_lse is None else <real*>&grad_lse[0, 0, 0]
    p.dscale = NULL if dscale is None else &dscale[0, 0]
    p.dsinks = NULL if dsinks is None else &dsinks[0, 0]
    p.dslopes = NULL if dslopes is None else &dslopes[0, 0, 0]
    p.biases = <int>len(dbiases)
    for t in range(len(dbiases)):
        p.dbias[t].is_double = dbiases[t].itemsize == sizeof(double)
        if p.dbias[t].is_double:
            doubles = dbiases[t]
            p.dbias[t].data, strides = <char*>&doubles[0, 0, 0, 0], doubles.strides
        else:
            reals = dbiases[t]
            p.dbias[t].data, strides = <char*>&reals[0, 0, 0, 0], reals.strides
        for k in range(4):
            p.dbias[t].stride[k] = strides[k]
    backward(&p, in_order, threads)
