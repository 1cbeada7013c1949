# The buffers of the softmax kernels, one set for each thread.

cdef struct TileWorkspace:
    real[BLOCK * PARTIALS] p                    # (BLOCK, PARTIALS): weights are f + p * f
    real[BLOCK * PARTIALS] f
    real[PARTIALS * PARTIALS] total             # (PARTIALS, PARTIALS): running sums, a line for each partial sum
    real[PARTIALS * PARTIALS] lost
    real[PARTIALS * PARTIALS] rest
    real[PARTIALS * PARTIALS] half
    vdd[PARTIALS * PARTIAL_REGS] runs           # see row_sums.pxi
    vdd[PARTIALS * PARTIAL_REGS] weights        # sums of the chunks before
    vdd[PARTIALS * PARTIAL_REGS] moments

cdef struct RowWorkspace:
    real* weights_buf                           # the weights of a row; or the elements, then the weights, of a tile
    elem* elements                              # (CHUNK): a chunk of a row with gaps or a mask
    TileWorkspace* tile

cdef class Workspaces:
    """The buffers of `threads` threads, freed with the object. With `shared`, all threads have one weights_buf."""
    cdef char* block
    cdef RowWorkspace* workspaces

    cdef int reserve(self, int threads, Py_ssize_t weights_buf, bint shared, bint tiles) except -1:
        cdef Py_ssize_t weights_bytes = round_up_to_line((weights_buf + BLOCK * PARTIALS) * sizeof(real))
        cdef Py_ssize_t elements_bytes = round_up_to_line((CHUNK + UNROLL) * sizeof(elem))
        cdef Py_ssize_t tile_bytes = round_up_to_line(sizeof(TileWorkspace)) if tiles else 0
        cdef Py_ssize_t workspaces_bytes = round_up_to_line(threads * sizeof(RowWorkspace))
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
