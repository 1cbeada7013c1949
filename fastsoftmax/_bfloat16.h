/* A dtype bfloat16 for NumPy: elements that lie in memory, convert and print, and no arithmetic, which is the kernels'.
 * Conversions to it go by float32 and round to nearest, ties to even; those from it are exact. */
#include <string.h>

#include <Python.h>
#include <numpy/arrayobject.h>

static float bf16_to_float(npy_uint16 x)
{
    npy_uint32 bits = (npy_uint32)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static npy_uint16 bf16_from_float(float value)
{
    npy_uint32 bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000)       /* NaN: a carry could make it infinite */
        return (npy_uint16)(bits >> 16 | 0x40);
    return (npy_uint16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* ---- an element */

static void bf16_copyswap(void *to, void *from, int swap, void *array)
{
    npy_uint16 x;
    if (from)
        memcpy(to, from, sizeof x);
    if (swap) {
        memcpy(&x, to, sizeof x);
        x = (npy_uint16)(x << 8 | x >> 8);
        memcpy(to, &x, sizeof x);
    }
}

static void bf16_copyswapn(void *to, npy_intp to_stride, void *from, npy_intp from_stride, npy_intp n, int swap,
                           void *array)
{
    for (npy_intp i = 0; i < n; i++)
        bf16_copyswap((char *)to + i * to_stride, from ? (char *)from + i * from_stride : NULL, swap, array);
}

static npy_uint16 bf16_element(void *data, void *array)
{
    npy_uint16 x = 0;
    bf16_copyswap(&x, data, array && PyArray_ISBYTESWAPPED((PyArrayObject *)array), array);
    return x;
}

static PyObject *bf16_getitem(void *data, void *array)
{
    return PyFloat_FromDouble(bf16_to_float(bf16_element(data, array)));
}

static int bf16_setitem(PyObject *value, void *data, void *array)
{
    double number = PyFloat_AsDouble(value);
    if (number == -1 && PyErr_Occurred())
        return -1;
    npy_uint16 x = bf16_from_float((float)number);
    bf16_copyswap(data, &x, array && PyArray_ISBYTESWAPPED((PyArrayObject *)array), array);
    return 0;
}

static npy_bool bf16_nonzero(void *data, void *array)
{
    return (bf16_element(data, array) & 0x7fff) != 0;
}

/* ---- contiguous runs of elements: NumPy brings them into the machine's order */

#define CONVERSIONS(name, type)                                                                        \
    static void bf16_to_##name(void *from, void *to, npy_intp n, void *a, void *b)                     \
    {                                                                                                  \
        for (npy_intp i = 0; i < n; i++)                                                               \
            ((type *)to)[i] = (type)bf16_to_float(((npy_uint16 *)from)[i]);                            \
    }                                                                                                  \
    static void bf16_from_##name(void *from, void *to, npy_intp n, void *a, void *b)                   \
    {                                                                                                  \
        for (npy_intp i = 0; i < n; i++)                                                               \
            ((npy_uint16 *)to)[i] = bf16_from_float((float)((type *)from)[i]);                         \
    }
CONVERSIONS(float32, npy_float)
CONVERSIONS(float64, npy_double)
CONVERSIONS(longdouble, npy_longdouble)

static PyArray_ArrFuncs bf16_functions;

/* A new reference to the dtype, whose scalar type, a subclass of numpy.generic, gives it its name. */
static PyObject *register_bfloat16(PyObject *scalar_type)
{
    static const struct {
        int number;
        PyArray_VectorUnaryFunc *to, *from;
    } conversions[] = {
        {NPY_FLOAT, bf16_to_float32, bf16_from_float32}, {NPY_DOUBLE, bf16_to_float64, bf16_from_float64},
        {NPY_LONGDOUBLE, bf16_to_longdouble, bf16_from_longdouble},
    };
    static PyArray_DescrProto proto;
    PyArray_InitArrFuncs(&bf16_functions);
    bf16_functions.getitem = bf16_getitem;
    bf16_functions.setitem = bf16_setitem;
    bf16_functions.copyswap = bf16_copyswap;
    bf16_functions.copyswapn = bf16_copyswapn;
    bf16_functions.nonzero = bf16_nonzero;

    memset(&proto, 0, sizeof proto);
    Py_SET_REFCNT((PyObject *)&proto, 1);
    Py_SET_TYPE((PyObject *)&proto, &PyArrayDescr_Type);
    Py_INCREF(scalar_type);
    proto.typeobj = (PyTypeObject *)scalar_type;
    proto.kind = 'V';                           /* not 'f': NumPy takes these for numbers that it can compute with */
    proto.type = 'E';
    proto.byteorder = '=';
    proto.flags = NPY_USE_GETITEM | NPY_USE_SETITEM;
    proto.elsize = proto.alignment = sizeof(npy_uint16);
    proto.f = &bf16_functions;
    proto.hash = -1;
    int number = PyArray_RegisterDataType(&proto);
    if (number < 0)
        return NULL;
    PyArray_Descr *dtype = PyArray_DescrFromType(number);
    if (dtype == NULL)
        return NULL;
    for (size_t i = 0; i < sizeof conversions / sizeof *conversions; i++) {
        PyArray_Descr *other = PyArray_DescrFromType(conversions[i].number);
        int failed = PyArray_RegisterCastFunc(dtype, conversions[i].number, conversions[i].to) < 0
            || PyArray_RegisterCastFunc(other, number, conversions[i].from) < 0
            || PyArray_RegisterCanCast(dtype, conversions[i].number, NPY_NOSCALAR) < 0;
        Py_DECREF(other);
        if (failed) {
            Py_DECREF(dtype);
            return NULL;
        }
    }
    return (PyObject *)dtype;
}
