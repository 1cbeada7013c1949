"""``python -m fastsoftmax``: what is installed, whether it is right, what it is for, and how fast it is.

1. The configuration: version, compiler, instruction sets, threads and why that many, OpenMP runtime.
2. A self-check: every kernel of every (dtype, ISA) this CPU can run, against `fastsoftmax.reference` in a wider type.
3. Softmax on real text: what the function is for, and what the temperature does.
4. Speed against NumPy as one writes it, and against SciPy, PyTorch and ONNX Runtime where they are installed.

Softmax comes first in each part, then attention.

The exit status is 1 if a check fails.
"""

import sys

from fastsoftmax._selfcheck import accuracy, configuration, demo, speed


def main(arguments):
    """Run all four parts; the exit status."""
    if arguments:
        print(__doc__)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    sys.stdout.reconfigure(errors="replace")  # the sampled text may hold characters that a terminal has not
    configuration.show()
    failures = accuracy.check_all()
    demo.show()
    failures += speed.show()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
