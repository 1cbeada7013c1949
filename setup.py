"""Builds one extension module for each (dtype, instruction set), all from the text in fastsoftmax/kernels."""

import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

KERNELS = Path("fastsoftmax") / "kernels"
STUBS = Path("build") / "stubs"
PACKAGE = "fastsoftmax.kernels"
SHARED = "fastsoftmax._cyutility"           # Cython's memoryviews and functions, once for all modules

# The tables that the whole project follows: what is built, dispatched, tested and benchmarked.
DTYPES = {"f32": "real", "f64": "real", "f16": "bits", "bf16": "bits"}     # how a memoryview sees an element
ISAS = {                                    # from the plainest to the best; the first runs on every such CPU
    "x86_64": {
        "x86_64": ["-march=x86-64"],
        "x86_64_v3": ["-march=x86-64-v3"],
        "x86_64_v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        "x86_64_v4_bf16": ["-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"],
        "x86_64_v4_amx": ["-march=x86-64-v4", "-mamx-tile", "-mamx-bf16", "-mprefer-vector-width=512"],
    },
    "arm64": {"arm64": []},
    "other": {"generic": []},
}
# Instruction sets that only some dtypes have, and these for attention's forward pass alone: its modules hold nothing
# else. All the rest uses the instruction set before it.
ATTENTION_DTYPES = {"x86_64_v4_bf16": {"bf16"}, "x86_64_v4_amx": {"bf16"}}
MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}

DEBUG = os.environ.get("FASTSOFTMAX_DEBUG") == "1"          # bounds checks, no optimisation
ANNOTATE = os.environ.get("FASTSOFTMAX_ANNOTATE") == "1"    # Cython's annotated HTML, in build/stubs
SANITIZE = os.environ.get("FASTSOFTMAX_SANITIZE", "")       # address,undefined for instance: see tests/sanitize.py
MSVC = sys.platform == "win32"

DIRECTIVES = {
    "language_level": 3, "boundscheck": DEBUG, "wraparound": False, "cdivision": True,
    "initializedcheck": DEBUG, "embedsignature": False, "freethreading_compatible": False,
}


def isas():
    """The instruction sets of the machine built for, and their compiler flags."""
    if MSVC:
        return ISAS["other"]
    return ISAS[MACHINES.get(os.environ.get("FASTSOFTMAX_MACHINE", platform.machine()).lower(), "other")]


def modules():
    """(dtype, ISA) of every kernel module."""
    return [(dtype, isa) for dtype in DTYPES for isa in isas() if dtype in ATTENTION_DTYPES.get(isa, DTYPES)]


def kind(dtype, isa):
    """The text that a kernel module is made of."""
    return DTYPES[dtype] + ("_attention" if isa in ATTENTION_DTYPES else "")


def compile_flags(openmp=True, isa=None):
    """Flags that leave NaN, infinity, signed zero and subnormal numbers as they are."""
    if MSVC:
        return ["/O2", "/fp:precise", *(["/openmp"] if openmp else [])]
    parallel = ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
    speed = ["-O1", "-g"] if DEBUG or SANITIZE else ["-O3", "-g0"]
    if SANITIZE:
        speed += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    if "clang" not in os.environ.get("CC", "") and sys.platform != "darwin":
        if isa == "x86_64":                                 # for old CPUs: a fifth less time to compile, 2 % slower
            speed += ["-fno-gcse", "-fno-gcse-after-reload", "-fno-thread-jumps"]
        else:                                               # with x86_64, attention would take an eighth longer
            speed += ["-fschedule-insns", "-fsched-pressure"]   # exp of four registers at once: 8 % fewer cycles
        # no copies of functions and loops for some values of their arguments: an eighth of the code, without any gain
        speed += ["-fno-inline-functions", "-fno-ipa-cp-clone", "-fno-split-loops"]
    # what a kernel declares inline is one loop in each of its uses, and must become part of it
    inline = [] if DEBUG or SANITIZE else ["-DCYTHON_INLINE=inline __attribute__((always_inline))"]
    common = ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
              "-Wno-unused-function", "-Wno-psabi"]
    return (parallel if openmp else []) + speed + inline + common


def link_flags(openmp=True):
    if MSVC:
        return []
    if sys.platform == "darwin":
        return ["-lomp"] if openmp else []
    flags = ["-fopenmp"] if openmp else []
    return flags + [f"-fsanitize={SANITIZE}"] if SANITIZE else flags if DEBUG else [*flags, "-Wl,-s"]


def stubs():
    """The sources that are not in the project, and their texts: the kernels of each kind, and the modules.

    Cython sees the kernels once for each kind, as one module; the C of that is compiled in every module of the kind,
    which differ in their macros and flags.
    """
    texts = {}
    for dtype, isa in modules():
        name, elements = kind(dtype, isa), f'include "simd/elem_{DTYPES[dtype]}.pxi"\n'
        if isa in ATTENTION_DTYPES:
            texts[f"{name}.pyx"] = elements + 'include "base.pxi"\ninclude "attention_forward.pxi"\n'
        else:
            texts[f"{name}.pyx"] = elements + 'include "kernels.pxi"\n'
        texts[f"{dtype}_{isa}.c"] = f'#define PyInit_{name} PyInit_{dtype}_{isa}\n#include "{name}.c"\n'
    return {STUBS / KERNELS / name: text for name, text in texts.items()}


def extensions():
    """Everything that is compiled."""
    import numpy

    parallel = {"extra_link_args": link_flags()}
    serial = {"extra_compile_args": compile_flags(openmp=False), "extra_link_args": link_flags(openmp=False)}
    texts = sorted(str(path) for pattern in ("*.h", "*.pxi") for path in KERNELS.rglob(pattern))
    arrays = {"include_dirs": ["fastsoftmax", numpy.get_include()],
              "define_macros": [("NPY_NO_DEPRECATED_API", "NPY_1_23_API_VERSION")]}
    pthreads = ["-pthread"] if sys.platform == "linux" else []
    runtime = {"include_dirs": ["fastsoftmax"], "depends": sorted(map(str, KERNELS.glob("runtime/*.h")))}
    tables = [("FASTSOFTMAX_DTYPES", f'"{" ".join(DTYPES)}"'), ("FASTSOFTMAX_ISAS", f'"{" ".join(isas())}"'),
              ("FASTSOFTMAX_MODULES", '"' + " ".join(f"{dtype}_{isa}" for dtype, isa in modules()) + '"')]
    plainest, *others = (isa for isa in isas() if isa not in ATTENTION_DTYPES)
    isas_by_cost = [plainest, *reversed(others), *ATTENTION_DTYPES]   # the longest first: processors end together
    kernels = [
        Extension(
            f"{PACKAGE}.{dtype}_{isa}", [str(STUBS / KERNELS / f"{dtype}_{isa}.c")], include_dirs=[str(KERNELS)],
            define_macros=[(f"DTYPE_{dtype}", None), (f"ISA_{isa}", None)],
            extra_compile_args=compile_flags(isa=isa) + isas()[isa],
            depends=[*texts, str(STUBS / KERNELS / f"{kind(dtype, isa)}.c")], **parallel)
        for dtype, isa in sorted(modules(), key=lambda module: isas_by_cost.index(module[1]))
    ]
    return [
        *kernels,
        Extension(SHARED, [str(STUBS / "_cyutility.c")], **serial),
        Extension("fastsoftmax._cpu", ["fastsoftmax/_cpu.pyx"], define_macros=tables, **runtime, **serial),
        Extension("fastsoftmax._openmp", ["fastsoftmax/_openmp.pyx"], extra_compile_args=compile_flags(), **runtime,
                  **parallel),
        Extension("fastsoftmax._thread_pool", ["fastsoftmax/_thread_pool.pyx"],
                  extra_compile_args=compile_flags(openmp=False) + pthreads, **runtime,
                  extra_link_args=link_flags(openmp=False) + pthreads),
        Extension("fastsoftmax._testing", ["fastsoftmax/_testing.pyx"], **runtime, **serial),
        Extension("fastsoftmax._fastpath", ["fastsoftmax/_fastpath.pyx"], **arrays, **serial),
        Extension("fastsoftmax._bfloat16", ["fastsoftmax/_bfloat16.pyx"], depends=["fastsoftmax/_bfloat16.h"], **arrays,
                  **serial),
    ]


def holds(path, text):
    return path.exists() and path.read_text() == text


def is_translated(source):
    """Whether the C file of a .pyx is newer than all texts that it may be made of. SHARED is made of Cython's own."""
    made, texts = source.with_suffix(".c"), [] if source.suffix == ".c" else [source, *KERNELS.rglob("*.pxi")]
    return made.exists() and all(made.stat().st_mtime > text.stat().st_mtime for text in texts)


class BuildKernels(build_ext):
    """Writes the stubs, translates what is Cython and compiles, on all processors."""

    def run(self):
        import numpy
        from Cython import __version__ as cython_version
        from Cython.Build import cythonize

        STUBS.joinpath(KERNELS).mkdir(parents=True, exist_ok=True)
        for path, text in stubs().items():
            if not holds(path, text):
                path.write_text(text)
        # mtimes do not reflect a change of flags, compiler, Cython or NumPy: without a record of these, a release build
        # would reuse debug objects. With it, a translation newer than its texts need not be repeated. Cython alone
        # would: in pip's isolated builds its own files are always newer.
        flags = [(e.name, e.define_macros, e.extra_compile_args, e.extra_link_args) for e in self.extensions]
        made_with = cython_version, numpy.__version__, os.environ.get("CC", ""), DIRECTIVES, ANNOTATE, flags
        options, record = repr(made_with), STUBS / "options.txt"
        force = bool(self.force) or not holds(record, options)
        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

        kernels = [Extension(f"{PACKAGE}.{path.stem}", [str(path)]) for path in stubs() if path.suffix == ".pyx"]
        others = [e for e in self.extensions if Path(e.sources[0]).suffix == ".pyx" or e.name == SHARED]
        texts = [Path(e.sources[0]) for e in kernels + others]
        if force or not all(map(is_translated, texts)):
            cythonize([*kernels, *others], nthreads=jobs if jobs > 1 else 0, force=force, include_path=[str(KERNELS)],
                      annotate=ANNOTATE, compiler_directives=DIRECTIVES, shared_utility_qualified_name=SHARED)
        record.write_text(options)
        for extension in others:
            extension.sources = [str(Path(extension.sources[0]).with_suffix(".c"))]
        self.parallel = self.parallel or jobs
        super().run()


class SourceDistribution(sdist):
    """Sources alone, whatever else lies in the folders; setuptools itself knows only of the Python files."""

    FOLDERS = ("fastsoftmax", "tests", "bench", "docs")
    TOP = ("setup.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".ci/run", ".ci/oldest.py",
           "docs/_templates/contents.html", "docs/_templates/autosummary/base.rst")
    KINDS = {".py", ".pyi", ".pyx", ".pxd", ".pxi", ".h", ".md", ".typed", ".txt", ".json", ".svg", ".css"}

    def make_distribution(self):
        files = [path for folder in self.FOLDERS for path in Path(folder).rglob("*") if path.suffix in self.KINDS]
        self.filelist.files = sorted({*self.TOP, *map(str, files)})
        super().make_distribution()


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels, "sdist": SourceDistribution})
