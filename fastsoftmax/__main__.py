"""``python -m fastsoftmax``: shows the configuration, checks the kernels, shows an example, and measures speed.

1. The configuration: version, compiler, instruction sets, threads and why that many, OpenMP runtime.
2. A self-check: every kernel of every (dtype, ISA) that this CPU can run, gradients and sampling too,
   against `fastsoftmax.reference` in a wider type.
3. Softmax on real text: the purpose of the function, and the effect of the temperature.
4. Speed beside plain NumPy, and beside SciPy, PyTorch and ONNX Runtime if they are installed.

Softmax comes first in each part, then attention.

The exit status is 1 if a check fails.
"""

import sys

from fastsoftmax._selfcheck import accuracy, configuration, demo, gradients, sampling, speed


def main(arguments):
    """Run all four parts; return the exit status."""
    if arguments:
        print(__doc__)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    sys.stdout.reconfigure(errors="replace")  # the terminal may lack characters of the sampled text
    configuration.show()
    failures = accuracy.check_all() + gradients.check_all() + sampling.check_all()
    print("every check passed" if not failures else f"{failures} CHECKS FAILED")
    demo.show()
    failures += speed.show()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
