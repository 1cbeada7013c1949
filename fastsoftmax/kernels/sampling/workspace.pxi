# The buffers of the sampling kernels, one set for each thread.

cdef inline void* part_of(char** at, Py_ssize_t bytes) noexcept nogil:
    """The next bytes of a block, in whole cache lines."""
    cdef void* part = at[0]
    at[0] += round_up_to_line(bytes)
    return part

cdef Py_ssize_t lay_out(SamplingWorkspace* w, char* start, Py_ssize_t n, bint has_row, bint has_filters) noexcept nogil:
    """Points the buffers into memory from `start` on; returns how many bytes they take."""
    cdef char* at = start
    cdef Py_ssize_t room = (ceil_div(n, UNROLL) + 1) * UNROLL, filtered = room if has_filters else 0
    w.row = <real*>part_of(&at, (room if has_row else 0) * <Py_ssize_t>sizeof(real))
    w.x = <real*>part_of(&at, filtered * <Py_ssize_t>sizeof(real))
    w.key = <real*>part_of(&at, filtered * <Py_ssize_t>sizeof(real))
    w.at = <Py_ssize_t*>part_of(&at, filtered * <Py_ssize_t>sizeof(Py_ssize_t))
    w.mass = <int64_t*>part_of(&at, filtered * <Py_ssize_t>sizeof(int64_t))
    w.pick = <Py_ssize_t*>part_of(&at, filtered * <Py_ssize_t>sizeof(Py_ssize_t))
    w.pick_key = <double*>part_of(&at, filtered * <Py_ssize_t>sizeof(double))
    w.pick_measure = <int64_t*>part_of(&at, filtered * <Py_ssize_t>sizeof(int64_t))
    w.left_key = <double*>part_of(&at, filtered * <Py_ssize_t>sizeof(double))
    w.left_measure = <int64_t*>part_of(&at, filtered * <Py_ssize_t>sizeof(int64_t))
    w.buckets = <MassSum*>part_of(&at, (1 << BUCKET_BITS) * <Py_ssize_t>max(sizeof(MassSum), sizeof(SampleBucket)))
    w.chunk_mass = <int64_t*>part_of(&at, ceil_div(n, CHUNK) * <Py_ssize_t>sizeof(int64_t))
    w.masses = <int64_t*>part_of(&at, (CHUNK + UNROLL) * <Py_ssize_t>sizeof(int64_t))
    w.elements = <elem*>part_of(&at, (CHUNK + UNROLL) * <Py_ssize_t>sizeof(elem))
    w.reals = <real*>part_of(&at, (CHUNK + UNROLL) * <Py_ssize_t>sizeof(real))
    return at - start

# The last block that was given back, for the next call, which then finds its pages in memory: fetching new ones took as
# long as the rest of a call (128256 logits, top_p). Changed with the GIL alone.
cdef char* spare_block = NULL
cdef Py_ssize_t spare_bytes = 0

cdef enum:
    MOST_SPARE = 1 << 25        # bytes: larger blocks are not kept

cdef class SamplingWorkspaces:
    """The buffers of `threads` threads, given back with the object."""
    cdef char* block
    cdef Py_ssize_t bytes
    cdef SamplingWorkspace* workspaces

    cdef int reserve(self, int threads, Py_ssize_t n, bint has_row, bint has_filters) except -1:
        global spare_block, spare_bytes
        cdef SamplingWorkspace measured
        cdef Py_ssize_t first = round_up_to_line(threads * <Py_ssize_t>sizeof(SamplingWorkspace)), t
        cdef Py_ssize_t each = lay_out(&measured, NULL, n, has_row, has_filters), bytes = first + threads * each
        if bytes <= spare_bytes:
            self.block, self.bytes = spare_block, spare_bytes
            spare_block, spare_bytes = NULL, 0
        else:
            self.block, self.bytes = <char*>allocate(bytes), bytes
        self.workspaces = <SamplingWorkspace*>self.block
        for t in range(threads):
            lay_out(&self.workspaces[t], self.block + first + t * each, n, has_row, has_filters)

    def __dealloc__(self):
        global spare_block, spare_bytes
        if spare_bytes < self.bytes <= MOST_SPARE:
            free(spare_block)
            spare_block, spare_bytes = self.block, self.bytes
        else:
            free(self.block)
