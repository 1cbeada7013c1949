"""The tables and the plot of docs/threads.md, from results/threads.json, for report.py."""

import math

from charts import markdown
from record import load

LAYERS = {"pool": "our threads", "openmp": "OpenMP's"}
COLOURS = {"pool": "#1565c0", "openmp": "#c62828"}


def data():
    return load("threads.json")


def threads_cpu():
    found = data()
    return f"{found['cpu']}, `{found['isa']}`, two cores; microseconds, float32 where nothing else is said."


def second_thread():
    rows = [[f"{n}", *(f"{one:g} us, {two:g} us" for one, two in pairs)] for n, *pairs in data()["second_thread"]]
    return markdown(["elements", "float32: one thread, two", "float64: one thread, two"], rows, 0)


def pair(times):
    """By one thread, by all, and their ratio."""
    return f"{times[0]:.0f}, {times[1]:.0f}: {times[1] / times[0]:.2f}"


def in_both_layers(part):
    """(the row of our threads, that of OpenMP's) of each shape."""
    return zip(*(data()[layer][part] for layer in LAYERS), strict=True)


def busy():
    """One core is taken by an endless loop."""
    head = ["shape", *(f"{name}: {what}" for name in LAYERS.values() for what in ("median", "mean", "99th percentile"))]
    return markdown(head, [
        [rows[0]["shape"], *(pair(row[key]) for row in rows for key in ("median", "mean", "p99"))]
        for rows in in_both_layers("busy")])


def faster(row):
    return f"{row['times'][0]:.0f}, {row['times'][1]:.0f}: {row['times'][0] / row['times'][1]:.2f}"


def quiet_threads():
    """Nothing else runs."""
    head = ["shape", *(f"{name}: one thread, two, times as fast" for name in LAYERS.values())]
    return markdown(head, [[rows[0]["shape"], *map(faster, rows)] for rows in in_both_layers("quiet")])


def beside_matmul():
    """Each call follows a product of NumPy."""
    head = ["shape", *(f"{name}: {what}" for name in LAYERS.values() for what in (
        "one thread, two, times as fast", "90th percentile", "the product beside one, two"))]
    return markdown(head, [
        [rows[0]["shape"], *(cell for row in rows for cell in (
            faster(row), f"{row['tail']:.0f}", "{:.0f}, {:.0f}".format(*row["matmul"])))]
        for rows in in_both_layers("matmul")])


TABLES = (threads_cpu, second_thread, busy, quiet_threads, beside_matmul)


def plot_disturbance():
    """The time that all calls lost, over the length of the disturbance, both logarithmic: a line for each layer."""
    rows = {layer: data()[layer]["disturbance"] for layer in LAYERS}
    lengths = [row["length"] for row in rows["pool"]]
    lost = [max(row["lost"], 0.1) for found in rows.values() for row in found]
    low, high = math.floor(math.log10(min(lost + lengths))), math.ceil(math.log10(max(lost + lengths)))
    left, top, side = 60, 66, 340

    def at(x, y):
        across, up = ((math.log10(max(v, 10**low)) - low) / (high - low) for v in (x, y))
        return f"{left + side * across:.1f},{top + side * (1 - up):.1f}"

    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 460" width="620" height="460" role="img" '
           'aria-label="Time lost over the length of a disturbance">',
           "<style>text{font:12px system-ui,sans-serif;fill:#222}.t{font-size:15px;font-weight:600}</style>",
           '<rect width="620" height="460" fill="#fff"/>',
           '<text class="t" x="12" y="24">Another program has one of two cores for some milliseconds</text>',
           '<text x="12" y="43">ms that all calls of softmax (256, 1000) lost to it, over its length in ms; '
           'grey: as much as its length</text>',
           f'<polyline points="{at(10**low, 10**low)} {at(10**high, 10**high)}" stroke="#bbb" fill="none"/>']
    for power in range(low, high + 1):
        x, y = at(10**power, 10**power).split(",")
        out.append(f'<text x="{x}" y="{top + side + 18}" text-anchor="middle">{10.0**power:g}</text>'
                   f'<text x="{left - 8}" y="{y}" text-anchor="end">{10.0**power:g}</text>')
    for i, (layer, found) in enumerate(rows.items()):
        points = " ".join(at(row["length"], row["lost"]) for row in found)
        out.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[layer]}" stroke-width="1.5"/>'
                   f'<text x="430" y="{top + 20 + 22 * i}" style="fill:{COLOURS[layer]}">{LAYERS[layer]}</text>')
    return "\n".join([*out, "</svg>", ""])
