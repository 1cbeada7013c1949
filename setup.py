"""Builds one extension module for each (dtype, instruction set), all from the text in fastsoftmax/kernels."""

import glob
import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
KERNELS = Path("fastsoftmax") / "kernels"
STUBS = Path("build") / "stubs"

# The two tables that the whole project follows: what is built, dispatched, tested and benchmarked.
DTYPES = {"f32": "elem_real.pxi", "f64": "elem_real.pxi", "f16": "elem_bits.pxi", "bf16": "elem_bits.pxi"}
ISAS = {                                    # from the plainest to the best
    "x86_64": {
        "generic": [],
        "x86_64_v2": ["-march=x86-64-v2"],
        "x86_64_v3": ["-march=x86-64-v3"],
        "x86_64_v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    },
    "arm64": {"generic": [], "arm64": []},
    "other": {"generic": []},
}
MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}

DEBUG = os.environ.get("FASTSOFTMAX_DEBUG") == "1"      # bounds checks, no optimisation
ANNOTATE = os.environ.get("FASTSOFTMAX_ANNOTATE") == "1"   # Cython's annotated HTML, in build/stubs
MSVC = sys.platform == "win32"


def isas():
    """The instruction sets of the machine built for, and their compiler flags."""
    if MSVC:
        return ISAS["other"]
    return ISAS[MACHINES.get(os.environ.get("FASTSOFTMAX_MACHINE", platform.machine()).lower(), "other")]


def compile_flags():
    """Flags that leave NaN, infinity, signed zero and subnormal numbers as they are."""
    if MSVC:
        return ["/O2", "/openmp", "/fp:precise"]
    openmp = ["-Xpreprocessor", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
    speed = ["-O1", "-g"] if DEBUG else ["-O3", "-g0"]
    if "clang" not in os.environ.get("CC", "") and sys.platform != "darwin":
        speed += ["-fschedule-insns", "-fsched-pressure"]      # four vectors at a time need it: 8 % fewer cycles
    return openmp + speed + ["-DCYTHON_INLINE=inline __attribute__((always_inline))", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden",
                             "-Wno-unused-function", "-Wno-psabi"]


def link_flags():
    if MSVC:
        return []
    if sys.platform == "darwin":
        return ["-lomp"]
    return ["-fopenmp"] if DEBUG else ["-fopenmp", "-Wl,-s"]


def extensions():
    """Writes the stubs, two lines each, and describes what is to be compiled."""
    import numpy

    common = {"extra_link_args": link_flags(), "language": "c"}
    folder = STUBS / KERNELS
    folder.mkdir(parents=True, exist_ok=True)
    modules = []
    for dtype, elements in DTYPES.items():
        for isa, flags in isas().items():
            stub = folder / f"{dtype}_{isa}.pyx"
            text = f'include "{elements}"\ninclude "kernels.pxi"\n'
            if not stub.exists() or stub.read_text() != text:
                stub.write_text(text)
            modules.append(Extension(
                f"fastsoftmax.kernels.{dtype}_{isa}", [str(stub)], include_dirs=[str(KERNELS)],
                define_macros=[(f"DTYPE_{dtype}", None), (f"ISA_{isa}", None)],
                extra_compile_args=compile_flags() + flags,
                depends=sorted(glob.glob(str(KERNELS / "*.h")) + glob.glob(str(KERNELS / "*.pxi"))), **common))
    tables = [("FASTSOFTMAX_DTYPES", f'"{" ".join(DTYPES)}"'), ("FASTSOFTMAX_ISAS", f'"{" ".join(isas())}"')]
    modules.append(Extension("fastsoftmax._cpu", ["fastsoftmax/_cpu.pyx"], define_macros=tables,
                             extra_compile_args=compile_flags(), **common))
    modules.append(Extension("fastsoftmax._front", ["fastsoftmax/_front.pyx"], include_dirs=[numpy.get_include()],
                             define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_23_API_VERSION")],
                             extra_compile_args=compile_flags(), **common))
    return modules


class BuildKernels(build_ext):
    """Translates and compiles on all processors."""

    def finalize_options(self):
        from Cython.Build import cythonize

        jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.distribution.ext_modules = cythonize(
            extensions(), nthreads=0 if DEBUG else jobs, include_path=[str(KERNELS)], annotate=ANNOTATE,
            compiler_directives={
                "language_level": 3, "boundscheck": DEBUG, "wraparound": False, "cdivision": True,
                "initializedcheck": DEBUG, "embedsignature": False, "freethreading_compatible": False,
            })
        super().finalize_options()
        self.parallel = self.parallel or jobs


class SourceDistribution(sdist):
    """The kernels' text is not Python: it is named here, and only sources are."""

    def make_distribution(self):
        wanted = [path for pattern in ("fastsoftmax/**/*.py*", "fastsoftmax/kernels/*", "tests/**/*", "bench/*", "*.md",
                                       "LICENSE", "setup.py", "pyproject.toml", "fastsoftmax/py.typed")
                  for path in glob.glob(str(ROOT / pattern), recursive=True)]
        sources = (".py", ".pyi", ".pyx", ".pxd", ".pxi", ".h", ".md", ".toml", ".typed", ".txt", ".png", "LICENSE")
        self.filelist.files = sorted({
            os.path.relpath(path, ROOT) for path in wanted if path.endswith(sources) and os.path.isfile(path)})
        super().make_distribution()


setup(
    # a placeholder makes this a platform wheel; the list itself is made when it is built
    ext_modules=[Extension("fastsoftmax._cpu", ["fastsoftmax/_cpu.pyx"])],
    cmdclass={"build_ext": BuildKernels, "sdist": SourceDistribution},
)
