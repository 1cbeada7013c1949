# Sampling: a token of each row of logits x (outer, n, inner), or the logits of the tokens that may be drawn.
#
#   weight = exp((x - largest x) / temperature)         as an integer, a mass: math/mass.h
#   kept   = the tokens that pass the filters, in this order: top_k, top_p, min_p, typical_p
#   token  = the first for which the masses of the kept tokens up to it exceed uniform * (mass of all that are kept)
#
# A filter keeps the smallest set of tokens, largest keys first and ties by index, whose measure reaches what is needed:
#
#   filter       key                                    measure         needed
#   top_k        x                                      1 a token       k
#   top_p        x                                      mass            p * (mass of what the filters before left)
#   typical_p    -abs(log p + entropy)                  mass            p * (mass of what the filters before left)
#
# min_p keeps x >= largest x + temperature * log(min_p). So what is kept is always that with keys above a bound, and the
# first few that are equal to it: Bound. Nothing is sorted: select.pxi finds the bound.
#
# Fan, Lewis and Dauphin, 2018 (top_k); Holtzman et al., 2020 (top_p); Nguyen et al., 2024 (min_p); Meister et al., 2023
# (typical_p). A row is computed by one thread.

cdef extern from "math.h" nogil:
    double log2(double)
    double log1p(double)
    double sqrt(double)
    double fabs(double)

cdef enum RowStatus:                            # the same numbers as in _sampling.py
    ROW_IS_FINE = 0
    ROW_HAS_NAN = 1
    ROW_HAS_INFINITY = 2
    ROW_IS_EMPTY = 3                            # every weight is 0

cdef struct RowOptions:                         # of one row, as they lie in the array `options`
    double temperature, top_k, top_p, min_p, typical_p

cdef struct Sampling:
    Rows rows                                   # x; y: where filtered logits go, or NULL
    const char* options                         # RowOptions (outer, inner)
    Py_ssize_t options_outer, options_inner     # strides in bytes, and likewise for these:
    const char* uniform                         # double (outer, inner), or NULL: nothing is drawn
    Py_ssize_t uniform_outer, uniform_inner
    char* tokens                                # int64
    Py_ssize_t tokens_outer, tokens_inner
    char* logprob                               # double, or NULL
    Py_ssize_t logprob_outer, logprob_inner
    unsigned char* status                       # a RowStatus each
    Py_ssize_t status_outer, status_inner

cdef struct Bound:                              # what is kept: keys above `key`, and those equal to it up to `last`
    real key
    Py_ssize_t last                             # a place among the candidates

# The tokens that may still be drawn: all of the row at first, then a list of them.
cdef struct Candidates:
    Py_ssize_t count
    const real* x                               # (count)
    const real* key                             # (count): x itself, but for typical_p
    int64_t* mass                               # (count), if is_weighed
    const Py_ssize_t* at                        # (count) places in the row; NULL: all of the row
    bint is_weighed
    MassSum total                               # of mass
    bint has_bound                              # a filter has been applied, whose bound is still to be heeded
    Bound bound
    bint has_chunks                             # the workspace has the masses of chunks of what is kept
    double top, scale                           # the largest x, and log2(e) / temperature

cdef enum:
    BUCKET_BITS = 11
    LINEAR_TURNS = 4                            # histograms of keys; those of keys as integers follow
    SAMPLE = 4096                               # candidates that tell where a bound about is
    GROUP = 8                                   # of which so many lie together
    SPAN = 26                                   # of the logs of weights, in base 2, in the histogram of a sample
    FEW = 2 * SAMPLE                            # up to so many candidates all are looked at
    MOST_OF = 4                                 # a list of more than a quarter of the candidates does not pay

cdef struct SampleBucket:                       # of the measures in a bucket of the sample, from the smallest key up
    double sum, squares

cdef struct SamplingWorkspace:
    real* row                                   # (n): a row with gaps, a mask or 16-bit elements
    real* x                                     # the rest (n), for filters: the candidates
    real* key
    Py_ssize_t* at
    int64_t* mass
    Py_ssize_t* pick                            # candidates among which a bound is
    double* pick_key                            # their keys and measures
    int64_t* pick_measure
    double* left_key                            # those of the picks in the bucket of the bound
    int64_t* left_measure
    MassSum* buckets                            # (1 << BUCKET_BITS); or SampleBucket (1 << BUCKET_BITS)
    int64_t* chunk_mass                         # (chunks of n)
    int64_t* masses                             # (CHUNK)
    elem* elements                              # (CHUNK)
    real* reals                                 # (CHUNK)
