"""SVG charts of results: bars of the time beside ours, and lines of the speed over the width of rows."""

from xml.sax.saxutils import escape

COLOURS = {                 # Okabe and Ito's, which colour-blind readers can tell apart
    "fastsoftmax": "#000000", "PyTorch": "#d55e00", "PyTorch folded": "#e69f00", "ONNX Runtime": "#0072b2",
    "OpenVINO": "#cc79a7", "JAX": "#009e73", "SciPy": "#56b4e9", "NumPy": "#8a8a8a", "XNNPACK": "#b8a800",
}
STYLE = "text{font:12px system-ui,sans-serif;fill:#222}.s{font-size:11px;fill:#555}.t{font-size:15px;font-weight:600}"


def head(title, subtitle, width, height, names):
    """The start of a chart: its titles, and a legend of the libraries."""
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
           f'role="img" aria-label="{escape(title)}">', f"<style>{STYLE}</style>",
           f'<rect width="{width}" height="{height}" fill="#fff"/>',
           f'<text class="t" x="12" y="24">{escape(title)}</text>', f'<text x="12" y="43">{escape(subtitle)}</text>']
    x = 12
    for name in names:
        out.append(f'<rect x="{x}" y="56" width="11" height="11" fill="{COLOURS[name]}"/>'
                   f'<text x="{x + 16}" y="66">{name}</text>')
        x += 34 + 7 * len(name)
    return out


def chart(title, subtitle, found, clip=8):
    """Bars of the time relative to ours, a group for each row; a bar longer than `clip` is cut and says its length."""
    names = [name for name in COLOURS if any(name in times for _, _, times in found)]
    left, step, gap, scale, width = 330, 13, 12, 46, 800
    height = 106 + sum(step * len(times) + gap for _, _, times in found)
    out = head(title, subtitle, width, height, names)
    out.append(f'<line x1="{left + scale}" x2="{left + scale}" y1="78" y2="{height - 18}" stroke="#999"/>')
    y = 86
    for label, note, times in found:
        middle = y + step * len(times) / 2
        out.append(f'<text x="{left - 10}" y="{middle - 2:g}" text-anchor="end">{escape(label)}</text>')
        out.append(f'<text class="s" x="{left - 10}" y="{middle + 12:g}" text-anchor="end">{escape(note)}</text>')
        for name in (name for name in names if name in times):
            length = scale * min(times[name], clip)
            out.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{step - 2}" fill="{COLOURS[name]}"/>'
                       f'<text class="s" x="{left + length + 5:.1f}" y="{y + 10}">{times[name]:.3g}'
                       f"{' (bar cut)' if times[name] > clip else ''}</text>")
            y += step
        y += gap
    out.append(f'<text class="s" x="{left + scale}" y="{height - 5}" text-anchor="middle">1 = fastsoftmax</text>')
    return "\n".join([*out, "</svg>", ""])


def lines(title, subtitle, xs, panels):
    """Panels one above the other, each (label, {library: values over xs}); every y axis starts at 0."""
    names = [name for name in COLOURS if any(name in series for _, series in panels)]
    left, right, width, tall, pitch = 48, 788, 800, 220, 272
    out = head(title, subtitle, width, 84 + pitch * len(panels), names)

    def at(x):
        return left + (right - left) * (x - xs[0]) / (xs[-1] - xs[0])

    for number, (label, series) in enumerate(panels):
        bottom = 108 + pitch * number + tall
        top = max(value for values in series.values() for value in values if value is not None)
        out.append(f'<text x="{left}" y="{bottom - tall - 10}">{escape(label)}</text>')
        for tick in range(int(top) + 1):
            y = bottom - tall * tick / top
            out.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                       f'<text class="s" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
        for x in (xs[0], *range(16, xs[-1] + 1, 16)):
            out.append(f'<text class="s" x="{at(x):.1f}" y="{bottom + 15}" text-anchor="middle">{x}</text>')
        for name in reversed([name for name in names if name in series]):
            points = " ".join(f"{at(x):.1f},{bottom - tall * value / top:.1f}"
                              for x, value in zip(xs, series[name], strict=True) if value is not None)
            out.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.6"/>')
    return "\n".join([*out, "</svg>", ""])


def markdown(head, rows, left=1):
    """A table of which the first `left` columns are words."""
    lines = [head, [*["---"] * left, *["---:"] * (len(head) - left)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
