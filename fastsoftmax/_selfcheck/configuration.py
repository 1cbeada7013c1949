"""The configuration: version, compiler, instruction sets, threads and why that many, OpenMP runtime."""

import sys

import numpy as np

import fastsoftmax


def show():
    """Print the content of `fastsoftmax.show_config`, one line for each item."""
    config = fastsoftmax.show_config(mode="dicts")
    openmp = config["openmp"] or {}
    lines = {
        "fastsoftmax": f"{config['version']}, NumPy {np.__version__}, Python {sys.version.split()[0]}",
        "compiler": config["compiler"],
        "instruction sets": f"in use {config['isa']}; supported by this CPU {', '.join(config['isa_available'])}; "
        f"built {', '.join(config['isa_built'])}",
        "threads": f"{config['threads']}: {config['threads_why']}",
        "threading layer": config["threading_layer"],
        "OpenMP": " ".join(str(openmp[key]) for key in ("runtime", "path") if openmp.get(key)) or "none",
    }
    for name, text in lines.items():
        print(f"{name:<17} {text}")
