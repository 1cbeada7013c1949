# Cython's view of vec.h. The registers are declared as plain numbers, so that arithmetic on them is written
# as arithmetic: what C sees are GNU C's vector types. Comparisons and choices go through words.

cdef extern from "simd/vec.h" nogil:
    ctypedef float real
    ctypedef float vreal
    ctypedef int vmask
    ctypedef int vcount
    ctypedef struct vdd:
        pass
    ctypedef struct fp_state:
        pass
    enum:
        LANES, PARTIALS, PARTIAL_REGS, UNROLL, STEPS_AT_ONCE, ADDS_TERMS, TRANSPOSE_ROWS
        COLUMNS, TILE_1, TILE_2, TILE_3, MAX_TILE
        PAIRED                                  # whether prefill multiplies bfloat16 in pairs: simd/pairs.h
        MATRIX_UNIT                             # whether a matrix unit does that: simd/matrix_unit.h
        MATRIX_PAIRS, MATRIX_ROWS, MATRIX_TILES
    elem ELEM_MINUS_INFINITY
    const real EPSILON                          # the distance from 1 to the next real
    const real NEARLY_ONE                       # the largest real below 1
    const real LEAST_NORMAL                     # below it, numbers are subnormal
    const real LARGEST_ELEM                     # the largest number that an element can be

    vreal load(const real*) noexcept
    void store(real*, vreal) noexcept
    void stream(real*, vreal) noexcept
    void stream_end() noexcept
    void prefetch(const void*) noexcept
    int opaque(int) noexcept
    vreal load_elem(const elem*) noexcept
    vreal load_last(const elem*, Py_ssize_t) noexcept
    vreal load_first(const elem*, Py_ssize_t) noexcept
    void store_first(elem*, vreal, Py_ssize_t) noexcept
    void store_elem(elem*, vreal) noexcept
    real real_of(const elem*) noexcept
    elem elem_of(real) noexcept

    vreal zero_from(vreal, Py_ssize_t) noexcept         # zeros from this lane on

    vreal broadcast(real) noexcept
    vmask lt(vreal, vreal) noexcept
    vmask eq(vreal, vreal) noexcept
    vmask both(vmask, vmask) noexcept
    vmask either(vmask, vmask) noexcept
    bint any_lane(vmask) noexcept
    unsigned long long lane_bits(vmask) noexcept        # bit i: lane i
    vreal vselect(vmask, vreal, vreal) noexcept
    vreal select_or_zero(vmask, vreal) noexcept
    vreal zero_where(vmask, vreal) noexcept
    vcount no_count() noexcept
    vcount count_where(vmask, vcount) noexcept
    vreal real_count(vcount) noexcept

    vreal vmax(vreal, vreal) noexcept           # the second where either is NaN
    vreal vmin(vreal, vreal) noexcept           # likewise
    vreal vabs(vreal) noexcept
    vreal saturated(vreal, vreal, vreal) noexcept       # a sum, and its parts
    real saturated_sum(real, real) noexcept
    const real HUGE_BIAS                        # what is smaller cannot make a finite score infinite
    vreal fma_(vreal, vreal, vreal) noexcept
    vreal two_prod_err(vreal, vreal, vreal) noexcept
    vreal mul_dd(vreal, vreal, vreal) noexcept  # a * (hi + lo)
    bint any_near_subnormal(vreal, vreal) noexcept        # of a weight, and of a normalizer's upper part
    vmask result_is_near_subnormal(vreal, vreal) noexcept
    vmask result_vanishes(vreal, vreal) noexcept
    vreal mul_dd_rounded_once(vreal, vreal, vreal) noexcept
    void mul_dd_in_place(real*, Py_ssize_t, Py_ssize_t, vreal, vreal) noexcept
    vmask is_power_of_two(vreal) noexcept
    vreal two_sum_err(vreal, vreal, vreal) noexcept
    vreal fast_two_sum_err(vreal, vreal, vreal) noexcept
    void add_to(vreal*, vreal*, vreal) noexcept
    void add_real_to(real*, real*, real) noexcept
    void add_lanes_to(real*, real*, vreal) noexcept
    void reciprocal(vreal, vreal, vreal*, vreal*) noexcept
    real hmax(vreal) noexcept
    vreal hsum(vreal) noexcept
    vreal hsum_exact(vreal) noexcept            # of integers
    real lane0(vreal) noexcept
    void transpose(vreal*) noexcept
    void load_squares(const elem*, Py_ssize_t, vreal*) noexcept
    void transpose_squares(vreal*) noexcept
    void store_square_row(elem*, const vreal*, Py_ssize_t) noexcept
    vreal sums_of(vreal*) noexcept              # lane i: the sum of register i

    const real HUGE_FACTOR
    bint has_huge(const elem*, Py_ssize_t) noexcept
    bint has_special(const elem*, Py_ssize_t) noexcept
    void clear_special(elem*, Py_ssize_t) noexcept
    vreal broadcast_pair(const real*) noexcept
    vreal dot_pairs(vreal, vreal, vreal) noexcept
    vreal pair_of(vreal, vreal) noexcept
    vreal first_of_pair(vreal) noexcept
    vreal second_of_pair(vreal) noexcept
    vreal upper_half(vreal) noexcept
    vreal before_truncation(vreal) noexcept

    void matrix_begin() noexcept
    void matrix_end() noexcept
    void matrix_scores(int, const real*, Py_ssize_t, const real*, Py_ssize_t, real*) noexcept
    void matrix_values(Py_ssize_t, const real*, Py_ssize_t, const real*, Py_ssize_t, Py_ssize_t, real*,
                       Py_ssize_t) noexcept

    vdd dd_zero() noexcept
    vdd dd_from(vreal) noexcept
    vdd dd_of_sum(vreal, vreal) noexcept
    vdd dd_lane0(vdd) noexcept                  # lane 0 in every lane
    vdd dd_add(vdd, vdd) noexcept
    vdd dd_sub(vdd, vdd) noexcept
    vdd dd_div(vdd, vdd) noexcept
    vdd dd_log1p(vdd) noexcept
    void dd_split(vdd, vreal*, vreal*) noexcept
    void dd_split_total(vdd, real*, real*) noexcept
    void dd_split_sum(vreal, vreal, vdd, vreal*, vreal*) noexcept
    vdd dd_total(const vdd*) noexcept
    ctypedef struct dd_numbers:                 # PARTIALS numbers, which come one by one
        pass
    void dd_put(dd_numbers*, Py_ssize_t, vdd) noexcept
    vdd dd_get(const dd_numbers*, int) noexcept
    ctypedef struct vdd_sum:
        vdd[4] chain
    vdd_sum dd_sum_start() noexcept
    vdd dd_sum_end(vdd_sum) noexcept

    ctypedef struct vfactor:                    # sums of terms of any sign: math/exact_sum.h
        pass
    vfactor factor_of(vreal) noexcept
    vfactor load_factor(const elem*) noexcept
    vdd dd_add_term(vdd, vfactor) noexcept
    vdd dd_add_product(vdd, vfactor, vfactor) noexcept
    ctypedef struct vproducts:                  # the sum of up to four
        pass
    vproducts no_products() noexcept
    vproducts add_elements(vproducts, vreal, vreal) noexcept
    vproducts add_elements_at(vproducts, const elem*, const elem*) noexcept
    vproducts add_reals_at(vproducts, const real*, const real*) noexcept
    void add_step(bint, bint, real, const elem*, const elem*, Py_ssize_t, Py_ssize_t, vdd*) noexcept
    vdd dd_join_products(vdd, vproducts) noexcept
    vdd dd_add_small_product(vdd, vfactor, vfactor) noexcept
    vdd dd_join(vdd, vdd) noexcept
    vdd dd_end(vdd) noexcept
    vreal finite_or_none(vreal) noexcept

    fp_state fp_enter() noexcept
    void fp_leave(fp_state) noexcept

cdef extern from "math/exp4.h" nogil:
    void exp_regs(int, const vreal*, const vreal*, const vreal*, int, vreal*, vreal*) noexcept
    vreal rounder_of(vreal) noexcept
    const real LOG2E, ROUNDER, SCALE, VANISHES, LARGE, PLAIN, REACH, FAR, HUGE_SCORE, SHRINK
    enum:
        RUN, MAX_EXP

cdef extern from "math/exp.h" nogil:
    vreal exp_(vreal) noexcept                  # of at most 1
    vreal tanh_(vreal) noexcept
    const real LEAST_EXPONENT

cdef extern from "math/mass.h" nogil:           # weights of sampling, as integers
    ctypedef long long int64_t
    ctypedef unsigned long long uint64_t
    ctypedef double vdouble
    ctypedef long long vlong
    ctypedef struct MassSum:
        pass
    enum:
        DOUBLES, MASS_BITS, MEAN_PARTIALS
    const double LOG2E_DOUBLE, LN2_DOUBLE
    vdouble load_doubles(const real*) noexcept
    vdouble broadcast_double(double) noexcept
    vlong load_masses(const int64_t*) noexcept
    void store_masses(int64_t*, vlong) noexcept
    vlong no_mass() noexcept
    int64_t mass_in_lanes(vlong) noexcept
    vlong mass_above(vdouble, vdouble, vlong) noexcept
    vdouble log2_weight(vdouble, vdouble, vdouble) noexcept
    vlong mass_of(vdouble) noexcept
    vdouble mass_to_double(vlong) noexcept
    void store_doubles(double*, vdouble) noexcept
    MassSum mass_sum(int64_t) noexcept
    MassSum sum_plus(MassSum, MassSum) noexcept
    MassSum sum_minus(MassSum, MassSum) noexcept
    bint sum_less(MassSum, MassSum) noexcept
    double sum_to_double(MassSum) noexcept
    MassSum share_of(MassSum, double, bint) noexcept    # rounded down or up
    uint64_t ordered(double) noexcept
    int64_t low_word(MassSum) noexcept
    real next_above(real) noexcept
    double next_double_below(double) noexcept
    int first_bit(uint64_t) noexcept
    int count_bits(uint64_t) noexcept
    int leading_bit(uint64_t) noexcept

cdef extern from "math.h" nogil:
    real INFINITY, NAN
    bint isnan(real) noexcept

cdef extern from "stdlib.h" nogil:
    void* aligned_alloc(size_t, size_t) noexcept
    void free(void*) noexcept
    void qsort(void*, size_t, size_t, int (*)(const void*, const void*) noexcept nogil) noexcept
cdef extern from "string.h" nogil:
    void* memcpy(void*, const void*, size_t) noexcept
    void* memset(void*, int, size_t) noexcept
