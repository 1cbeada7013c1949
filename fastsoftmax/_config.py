"""show_config: version, compiler, instruction sets, threads, threading layer, OpenMP runtime."""

from typing import Any, Literal, overload

from fastsoftmax import _cpu, _dispatch, _openmp, _threads
from fastsoftmax._version import __version__


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show how fastsoftmax was built and what it uses on this machine.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        "stdout" prints the configuration; "dicts" returns a dictionary, as `numpy.show_config` does.

    Returns
    -------
    dict or None
        Keys: ``version``; ``compiler``; ``isa``, the instruction set in use; ``isa_available``, those this CPU
        supports, from the plainest to the best; ``isa_built``, those of this build; ``threads``, the number that a call
        from this thread may use; ``threads_why``, the reason; ``threading_layer``, whose threads they are, ``"pool"``
        for those of fastsoftmax itself or ``"openmp"``; ``openmp``, the version and path of the OpenMP runtime.

    Raises
    ------
    ValueError
        If mode is neither of them.

    Examples
    --------
    >>> import fastsoftmax
    >>> config = fastsoftmax.show_config(mode="dicts")
    >>> config["isa"] in config["isa_available"]
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f'mode must be "stdout" or "dicts", got {mode!r}')
    openmp = _openmp.runtime()
    config = {
        "version": __version__,
        "compiler": _cpu.compiler,
        "isa": _dispatch.isa(),
        "isa_available": list(_dispatch.supported()),
        "isa_built": list(_dispatch.built()),
        "threads": _threads.get_num_threads(),
        "threads_why": _threads.why(),
        "threading_layer": _threads.layer(),
        "openmp": {"runtime": _runtime(openmp), "path": openmp["path"]},
    }
    if mode == "dicts":
        return config
    for key, value in config.items():
        if isinstance(value, list):
            value = ", ".join(value)
        elif isinstance(value, dict):
            value = ", ".join(str(part) for part in value.values() if part)
        print(f"{key:15} {value}")
    return None


def _runtime(openmp):
    if not openmp["version"]:
        return "none: built without OpenMP"
    for name in ("gomp", "iomp", "omp"):
        if f"lib{name}" in openmp["path"]:
            return f"lib{name} (OpenMP {openmp['version']})"
    return f"OpenMP {openmp['version']}"
