# The buffers of the softmax kernels, one set a thread.

cdef struct TileWorkspace:                      # one thread's tile
    real[BLOCK * PARTIALS] p                    # weights are f + p * f
    real[BLOCK * PARTIALS] f
    real[PARTIALS * PARTIALS] total             # running sums, a line for each partial sum: see add_weights
    real[PARTIALS * PARTIALS] lost
    real[PARTIALS * PARTIALS] rest
    vdd[PARTIALS * PARTIAL_REGS] weights        # of the chunks before
    vdd[PARTIALS * PARTIAL_REGS] moments

cdef struct RowWorkspace:                       # one thread's buffers
    real* weights_buf                           # weights of a row; elements, then weights, of a tile's rows
    elem* elements                              # CHUNK elements of a row with gaps
    TileWorkspace* tile

cdef class Workspaces:
    """The buffers of `threads` threads, freed with it."""
    cdef char* block
    cdef RowWorkspace* workspaces

    def __cinit__(self, int threads, Py_ssize_t weights_buf, bint shared, bint tiles):
        cdef Py_ssize_t weights_bytes = (weights_buf + BLOCK * PARTIALS) * sizeof(real) + 63 & ~63
        cdef Py_ssize_t elements_bytes = (CHUNK + UNROLL) * sizeof(elem) + 63 & ~63
        cdef Py_ssize_t tile_bytes = sizeof(TileWorkspace) + 63 & ~63 if tiles else 0
        cdef Py_ssize_t workspaces_bytes = threads * sizeof(RowWorkspace) + 63 & ~63
        cdef Py_ssize_t t
        cdef char* at
        self.block = <char*>allocate(workspaces_bytes + (1 if shared else threads) * weights_bytes
                                     + threads * (elements_bytes + tile_bytes))
        self.workspaces = <RowWorkspace*>self.block
        at = self.block + workspaces_bytes
        for t in range(threads):
            self.workspaces[t].weights_buf = <real*>at
            if not shared or t == threads - 1:
                at += weights_bytes
        for t in range(threads):
            self.workspaces[t].elements = <elem*>at
            at += elements_bytes
            self.workspaces[t].tile = <TileWorkspace*>at
            at += tile_bytes

    def __dealloc__(self):
        free(self.block)
