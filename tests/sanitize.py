"""Builds the package with sanitizers and runs the tests with it. Nothing is suppressed.

    python tests/sanitize.py [--isas generic x86_64_v3] [arguments for pytest]     # AddressSanitizer and UBSan
    python tests/sanitize.py --threads                                            # ThreadSanitizer, on team.h alone

The first takes a copy of the checkout, GCC and what a build needs; all instruction sets by default. Python and NumPy
themselves are not instrumented: the sanitizer is loaded before them and sees what our code does with their memory. Left
out are tests that measure memory (a sanitizer keeps freed memory for a while), limit it, read the machine code, or
import PyTorch, which does not survive it.

The second compiles the team of threads into a program that does nothing but share out tasks, from several threads at
once and in forked children, and looks for data races.
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
LEFT_OUT = ("torch", "stays_flat", "share_one_team", "no_memory", "never_copied", "no_thread_can_be_started",
            "test_objects", "control_c")

STRESS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
#include "team.h"
enum { TASKS = 1000, ROUNDS = 300, CALLERS = 4, FORKS = 20 };
typedef struct { int done[TASKS]; long sum[8]; } work;
static void task(const void *what, ptrdiff_t t, int thread)
{
    work *w = (work *)what;
    w->done[t]++;                   /* a race if two threads had the same task */
    w->sum[thread] += t;            /* or the same number */
}
static void *caller(void *seed)
{
    for (int round = 0; round < ROUNDS; round++) {
        static __thread work w;
        memset(&w, 0, sizeof w);
        int threads = 1 + (round + *(int *)seed) % 8, start = round % 7, stop = TASKS - round % 900;
        long sum = 0;
        team_share(task, &w, start, stop, threads, round & 1);
        for (int t = 0; t < TASKS; t++)
            if (w.done[t] != (t >= start && t < stop)) { printf("task %d: %d times\n", t, w.done[t]); abort(); }
        for (int k = 0; k < 8; k++)
            sum += w.sum[k];
        if (sum != (long)(stop - start) * (start + stop - 1) / 2) { puts("wrong sum"); abort(); }
        if (round % 50 == 0)
            usleep(300);            /* the team falls asleep */
    }
    return NULL;
}
static void callers(void)
{
    pthread_t thread[CALLERS];
    int seed[CALLERS];
    for (int k = 0; k < CALLERS; k++) {
        seed[k] = k;
        pthread_create(&thread[k], NULL, caller, &seed[k]);
    }
    for (int k = 0; k < CALLERS; k++)
        pthread_join(thread[k], NULL);
}
int main(void)
{
    int status, seed = 0;
    if (team_prepare() != 0) return 1;
    callers();
    for (int k = 0; k < FORKS; k++) {
        pid_t child = fork();
        if (child == 0) { caller(&seed); _exit(0); }
        caller(&seed);
        if (waitpid(child, &status, 0) != child || status != 0) { puts("a child failed"); return 1; }
    }
    callers();
    printf("%d calls from up to %d threads, %d forks: every task done once\n",
           (2 * CALLERS + 2 * FORKS) * ROUNDS, CALLERS, FORKS);
    return 0;
}
"""


def check_threads():
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "stress"
        program.with_suffix(".c").write_text(STRESS)
        subprocess.run([CC, "-O1", "-g", "-pthread", "-fsanitize=thread", f"-I{ROOT / 'fastsoftmax'}",
                        f"{program}.c", "-o", program], check=True)
        # by default a child of a process with threads is ended, whatever it does
        options = {"TSAN_OPTIONS": "die_after_fork=0:halt_on_error=1"}
        return subprocess.run([program], env={**os.environ, **options}, check=False).returncode


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
    parser.add_argument("--threads", action="store_true")
    parser.add_argument("--isas", nargs="*")
    parser.add_argument("--keep", metavar="FOLDER", help="build here, and use what is already built here")
    options, arguments = parser.parse_known_args()
    sys.exit(check_threads() if options.threads else check_memory(options.isas, arguments, options.keep))


if __name__ == "__main__":
    main()
