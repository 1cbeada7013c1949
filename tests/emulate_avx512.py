"""Runs the tests of those of the x86_64_v4, x86_64_v4_bf16 and x86_64_v4_amx kernels whose instructions a CPU with AVX2
lacks.

    python tests/emulate_avx512.py [arguments for pytest]

The kernels' own text is compiled for AVX2 with `emulated/immintrin.h` in the place of the compiler's header: registers
of 64 bytes become pairs of 32, each intrinsic two of the narrower, and AMX's tiles arrays. Lanes, tails and the order
of operations are those of the real kernels, and so are the results; what the compiler makes of the real intrinsics is
not tested. Needs the checkout, an installed fastsoftmax and what a build needs.
"""

import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import setuptools

ISAS = ("x86_64_v4", "x86_64_v4_bf16", "x86_64_v4_amx")
TESTS = Path(__file__).resolve().parent


def build(isas, folder):
    """Compile the kernels of these instruction sets in a copy of the checkout; the folder of the modules."""
    shutil.copytree(TESTS.parent / "fastsoftmax", folder / "fastsoftmax", ignore=shutil.ignore_patterns("*.so", "*.c"))
    os.chdir(folder)
    with mock.patch("setuptools.setup"):
        project = runpy.run_path(os.fspath(TESTS.parent / "setup.py"))
    modules = [module for module in project["extensions"]() if module.name.endswith(isas)]
    for module in modules:
        module.include_dirs.insert(0, os.fspath(TESTS / "emulated"))
        left_out = {"-O3", *(flag for isa in isas for flag in project["ISAS"]["x86_64"][isa])}
        module.extra_compile_args = [flag for flag in module.extra_compile_args if flag not in left_out]
        module.extra_compile_args += ["-O1", *project["ISAS"]["x86_64"]["x86_64_v3"]]       # -O3 takes 15 minutes
    setuptools.setup(
        name="emulated", packages=[], ext_modules=modules, cmdclass={"build_ext": project["BuildKernels"]},
        script_args=["--quiet", "build_ext", "--build-lib", os.fspath(folder / "built")])
    os.chdir(TESTS.parent)
    return folder / "built" / "fastsoftmax" / "kernels"


def main():
    from fastsoftmax import _cpu, kernels

    supports = _cpu.supports
    isas = tuple(isa for isa in ISAS if not supports(isa))
    if not isas:
        sys.exit(f"this CPU has {', '.join(ISAS)}: its own kernels are tested by pytest")
    with tempfile.TemporaryDirectory() as folder:
        kernels.__path__.insert(0, os.fspath(build(isas, Path(folder))))
        # test_isa_variable... asks a process of its own, which knows nothing of this
        _cpu.supports = lambda isa: isa in isas or supports(isa)
        chosen = f"({' or '.join(isas)}) and not isa_variable"
        sys.exit(pytest.main(["-k", chosen, *(sys.argv[1:] or [os.fspath(TESTS)])]))


if __name__ == "__main__":
    main()
