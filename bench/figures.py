"""From times to figures: a cell of a table, and the content of a results file.

`compare.py` measures, `record.py` reads and writes the files, `report.py` makes tables and plots of them.
"""

import contextlib
import datetime
import os
import platform
import re
import statistics
from typing import NamedTuple

import machine
import peers
import shapes
from machine import Machine
from standalone import turns

OURS = peers.Ours.name
INTEL = {  # family 6, by model
    79: "Broadwell", 85: "Skylake or Cascade Lake", 106: "Ice Lake", 108: "Ice Lake", 143: "Sapphire Rapids",
    151: "Alder Lake", 154: "Alder Lake", 183: "Raptor Lake", 207: "Emerald Rapids", 173: "Granite Rapids",
}
WITH_AMX = ("Sapphire Rapids", "Emerald Rapids", "Granite Rapids")
ARM = {"0xd0c": "Neoverse N1", "0xd40": "Neoverse V1", "0xd49": "Neoverse N2", "0xd4f": "Neoverse V2"}
UNITS = {"elements": "G elements/s", "flops": "GFLOP/s", "bytes": "GB/s"}


class Row(NamedTuple):
    """The measurement of one function on one shape with so many threads, each by library."""

    family: str
    shape: tuple
    threads: int
    times: dict  # seconds per call, a list over the rounds
    reasons: dict  # why there are none
    notes: dict  # of attention: {"how": the operator called, "error": the largest}


def speed(times, shape, family):
    """G elements/s, GFLOP/s or GB/s."""
    return shape.work(family)[0] / statistics.median(times) / 1e9


def figure(times, shape, family):
    """A cell: the speed, or the time of a call where the call is what counts."""
    if shape.small:
        return f"{statistics.median(times) * 1e6:.2f} us"
    return f"{speed(times, shape, family):.{3 if shape.work(family)[1] == 'elements' else 1}f}"


def best_peer(times, family):
    """The peer with the lowest median ratio, and that ratio; (None, None) when there is none.

    The oracle is no peer; in decoding neither is what its caller rearranged by hand.
    """
    left_out = (OURS, peers.Oracle.name, Machine.name, *(peers.BY_HAND if family == "attention_decode" else ()))
    ratios = {name: turns.ratio(taken, times[OURS]) for name, taken in times.items() if name not in left_out}
    return min(ratios.items(), key=lambda item: item[1]) if ratios else (None, None)


def results(rows, limits, versions, isa, rounds):
    """The content of a results file; report.py reads it.

    Of each row: each library's figure in `unit`; `times_best_peer`, the best peer's time over ours; `limit`, what
    bounds the row (`machine.limit`), and `percent_of_limit`, the time of the machine's own copy, read or write of as
    much memory, or of as many multiply-adds in registers, over ours. All are medians over rounds.
    """
    return {
        "date": str(datetime.date.today()), "cpu": cpu(), "cpus": cpus(), "isa": isa,
        "system": f"{platform.system()} {platform.machine()}", "python": platform.python_version(), "rounds": rounds,
        "versions": {name: what for name, what in versions.items() if name != Machine.name},
        "limits": limits, "rows": [result(row) for row in rows], "unavailable": unavailable(rows, versions),
        "calls": calls(rows), "notes": [],
    }


def result(row):
    """One row of a results file."""
    family, shape, threads, times, *_ = row
    unit = "us" if shape.small else UNITS[shape.work(family)[1]]
    peer, factor = best_peer(times, family) if OURS in times else (None, None)
    found = {
        "function": family, "name": shape.name, "shape": list(shape.shape), "dtype": shape.dtype, "threads": threads,
        "unit": unit, "best_peer": peer, "figures": {
            name: float(figure(taken, shape, family).removesuffix(" us"))
            for name, taken in times.items() if name != Machine.name},
    }
    if getattr(shape, "axis", -1) != -1:
        found["axis"] = shape.axis
    if factor:
        found["times_best_peer"] = round(factor, 2)
    if OURS in times and family in shapes.ATTENTION:
        found["time"] = turns.duration(times[OURS])
    if {OURS, Machine.name} <= set(times):
        found.update(limit=machine.limit(family, shape)[0], percent_of_limit=percent_of_limit(times))
    folded = peers.BY_HAND[0]
    if {OURS, folded} <= set(times):
        found["times_folded"] = round(turns.ratio(times[folded], times[OURS]), 2)
    return found


def percent_of_limit(times):
    """The time of the machine's limit over ours."""
    return round(100 * turns.ratio(times[Machine.name], times[OURS]))


def calls(rows):
    """How each library was called for attention, and its largest error by dtype."""
    found = {}
    for row in rows:
        for name, note in row.notes.items():
            if "error" in note:
                entry = found.setdefault(name, {"calls": [], "errors": {}})
                entry["calls"] = list(dict.fromkeys([*entry["calls"], note["how"]]))
                largest = max(note["error"], entry["errors"].get(row.shape.dtype, 0.0))
                entry["errors"][row.shape.dtype] = float(f"{largest:.1e}")
    return found


def unavailable(rows, versions):
    """Each library that is absent, and each reason why one could not do some of the cases."""
    absent = {name: what for name, what in versions.items() if what.startswith("absent")}
    cases = {}
    for row in rows:
        for name, why in row.reasons.items():
            if name not in absent:
                cases.setdefault((name, why), {}).setdefault(row.shape.name, {})[row.family] = None
    found = [{"library": name, "why": what, "cases": {}} for name, what in absent.items()]
    return found + [{"library": name, "why": why, "cases": {shape: list(families) for shape, families in where.items()}}
                    for (name, why), where in cases.items()]


def cpu():
    """The processor's name, with the family and model that tell its generation."""
    names = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            key, _, value = line.partition(":")
            names.setdefault(key.strip(), value.strip())
    model = names.get("model name") or platform.processor() or platform.machine()
    return identity(model, names)


def identity(model, names):
    """The name as people know it: "AMD EPYC, family 25 model 17 (Zen 4)"."""
    if "cpu family" in names:
        model += f", family {names['cpu family']} model {names['model']}"
        found = generation(names.get("vendor_id"), int(names["cpu family"]), int(names["model"]),
                           names.get("flags", "").split())
    else:
        found = ARM.get(names.get("CPU part"))
    return model + (f" ({found})" if found else "")


def generation(vendor, family, model, flags=()):
    """The generation of an x86 processor by its CPUID, or None where it is not known here.

    Virtual machines may show the model of another processor, which has no AMX.
    """
    if vendor == "AuthenticAMD":
        if family == 25:
            return "Zen 4" if 0x10 <= model < 0x20 or 0x60 <= model < 0x80 or 0xA0 <= model < 0xB0 else "Zen 3"
        return {23: "Zen 2" if model >= 0x30 else "Zen", 26: "Zen 5"}.get(family)
    if vendor != "GenuineIntel" or family != 6:
        return None
    if "amx_tile" in flags and INTEL.get(model) not in WITH_AMX:
        return "Granite Rapids" if "amx_fp16" in flags else "Sapphire or Emerald Rapids"
    return INTEL.get(model)


def slug(cpu):
    """The name of a processor as that of a file: "AMD EPYC, family 25 model 17 (Zen 4)" is amd-epyc-zen4."""
    name, _, rest = cpu.partition(", family")
    if kind := re.search(r"\((.*)\)$", rest or name):
        name, rest = name.removesuffix(f" ({kind[1]})") + " " + kind[1].replace("Zen ", "Zen"), ""
    name = re.sub(r"\(R\)|\(TM\)|\bCPU\b|@.*|\bProcessor\b|\d+-Core", " ", name, flags=re.IGNORECASE)
    return re.sub(r"\W+", "-", f"{name} {rest}".lower()).strip("-")


def cpus():
    """The number of CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
