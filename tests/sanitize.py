"""Builds the package with sanitizers and runs the tests with it. Nothing is suppressed.

    python tests/sanitize.py [--isas x86_64 x86_64_v3] [arguments for pytest]     # AddressSanitizer and UBSan

It takes a copy of the checkout, GCC and what a build needs; all instruction sets by default. Python and NumPy
themselves are not instrumented: the sanitizer is loaded before them and sees what our code does with their memory. Left
out are tests that measure memory (a sanitizer keeps freed memory for a while) or time, limit memory, read the machine
code, or import PyTorch, which does not survive it.
"""

import argparse
import contextlib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
CC = os.environ.get("CC", "cc")
LEFT_OUT = ("torch", "stays_flat", "many_callers", "no_memory", "never_copied", "test_objects", "control_c",
            "take_no_longer")


def build(folder, isas):
    """Build a copy of the checkout in place, in the folder."""
    for name in ("fastsoftmax", "tests", "bench"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)
    os.environ["FASTSOFTMAX_SANITIZE"] = "address,undefined"
    os.chdir(folder)
    with mock.patch("setuptools.setup"):
        project = runpy.run_path("setup.py")
    for table in project["ISAS"].values():
        for isa in [isa for isa in table if isas and isa not in isas]:
            del table[isa]
    import setuptools
    setuptools.setup(
        name="fastsoftmax", packages=[], ext_modules=project["extensions"](),
        cmdclass={"build_ext": project["BuildKernels"]}, script_args=["--quiet", "build_ext", "--inplace"])


def check_memory(isas, arguments, keep=None):
    with contextlib.nullcontext(keep) if keep else tempfile.TemporaryDirectory() as folder:
        if not keep or not Path(folder, "setup.py").exists():
            Path(folder).mkdir(exist_ok=True)
            build(Path(folder), isas)
        # The runtime has to be there before Python starts. Leaks of Python itself would be reported at exit;
        # segmentation faults and traps are what some tests look for in child processes; malloc shows the sanitizer
        # each object.
        runtime = subprocess.run([CC, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
        environment = {
            "LD_PRELOAD": runtime.stdout.strip(), "PYTHONMALLOC": "malloc", "PYTHONPATH": folder,
            "ASAN_OPTIONS": f"detect_leaks=0:handle_segv=0:handle_sigfpe=0:log_path={folder}/report",
            "UBSAN_OPTIONS": f"print_stacktrace=1:halt_on_error=1:log_path={folder}/report"}
        left_out = " and ".join(f"not {word}" for word in LEFT_OUT)
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", "-k", left_out, *arguments],
            cwd=folder, env={**os.environ, **environment}, check=False).returncode
        reports = sorted(Path(folder).glob("report*"))
        for report in reports:                  # pytest has the standard error output of its own process
            print(report.read_text(errors="replace"))
        return status or len(reports)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isas", nargs="*")
    parser.add_argument("--keep", metavar="FOLDER", help="build here, and use what is already built here")
    options, arguments = parser.parse_known_args()
    sys.exit(check_memory(options.isas, arguments, options.keep))


if __name__ == "__main__":
    main()
