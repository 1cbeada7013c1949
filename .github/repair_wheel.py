"""Makes a Linux wheel that installs anywhere: with a copy of libgomp, under its own name.

    python .github/repair_wheel.py WHEEL FOLDER

auditwheel alone would rename the copy, so that a process that imports PyTorch too, which brings one of its own, would
have two, each with its idle threads spinning against the other's work. Under the one name, libgomp.so.1, the loader
takes whichever was loaded first for both. auditwheel then finds nothing to add; it checks that everything keeps to a
manylinux policy, the copy included, and puts that policy's name on the wheel.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARY, FOLDER = "libgomp.so.1", "fastsoftmax.libs"


def run(*command, **options):
    return subprocess.run([str(word) for word in command], check=True, text=True, **options)


def with_library(wheel, to):
    """A wheel whose modules load the copy of the library beside them; its path."""
    with tempfile.TemporaryDirectory() as unpacked:
        run(sys.executable, "-m", "wheel", "unpack", wheel, "--dest", unpacked)
        root, = Path(unpacked).iterdir()
        modules = sorted(root.rglob("*.so"))
        for module in modules:
            up = "/".join([".."] * len(module.relative_to(root).parent.parts))
            run("patchelf", "--force-rpath", "--set-rpath", f"$ORIGIN/{up}/{FOLDER}", module)
        found = run("gcc", f"-print-file-name={LIBRARY}", stdout=subprocess.PIPE).stdout.strip()
        copy = root / FOLDER / LIBRARY
        copy.parent.mkdir()
        shutil.copy(Path(found).resolve(), copy)
        copy.chmod(0o755)
        run("strip", "--strip-unneeded", copy)
        run(sys.executable, "-m", "wheel", "pack", root, "--dest-dir", to)
    made, = Path(to).glob("*.whl")
    return made


def main():
    wheel, folder = sys.argv[1:]
    with tempfile.TemporaryDirectory() as made:
        run("auditwheel", "repair", "--zip-compression-level", "9", "--wheel-dir", folder, with_library(wheel, made))


if __name__ == "__main__":
    main()
