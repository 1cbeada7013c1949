"""Two directives that draw SVG into the page: `mask`, the weights of a call of attention, and `flow`, boxes and arrows.

`mask` takes the options of `scaled_dot_product_attention` as its argument and calls it, so that a picture shows the
function's own result: the values are the rows of an identity matrix, so the result is the matrix of weights. A full
square is a large weight, a pale one a small weight, a dot a hidden key.
"""

from html import escape

import numpy as np
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

import fastsoftmax

CELL, GAP, TOP, LEFT = 20, 46, 52, 56


def weights(call, queries, keys, heads, batch, peaked):
    """(panels, L, S) weights of the call, with a column for the sink if there is one."""
    options = eval(f"dict({call})", {"np": np})
    rng = np.random.default_rng(3)
    size = 4
    query = rng.normal(size=(batch, heads, queries, size)) * 1.5 if peaked else np.zeros((batch, heads, queries, size))
    key = rng.normal(size=(1, 1, keys, size))
    out = fastsoftmax.scaled_dot_product_attention(query, key, np.eye(keys)[None, None], **options)
    out = out.reshape(-1, queries, keys)
    return np.concatenate([out, 1 - out.sum(-1, keepdims=True)], -1) if "sinks" in options else out


def panel(matrix, x, title, sink):
    """One matrix of weights."""
    rows, columns = matrix.shape
    out = [f'<text x="{x}" y="32">{escape(title)}</text>',
           f'<text class="n" x="{x - 6}" y="{TOP - 6}" text-anchor="end">keys</text>']
    for j in range(columns):
        name = "sink" if sink and j == columns - 1 else str(j)
        out.append(f'<text class="n" x="{x + j * CELL + CELL / 2:g}" y="{TOP - 6}" text-anchor="middle">{name}</text>')
    for i in range(rows):
        y = TOP + i * CELL
        out.append(f'<text class="n" x="{x - 6}" y="{y + CELL / 2 + 4:g}" text-anchor="end">{i}</text>')
        for j in range(columns):
            cell, value = x + j * CELL, matrix[i, j]
            if value > 0:
                shade = 0.12 + 0.88 * value / matrix.max()
                out.append(f'<rect class="w" x="{cell + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}" '
                           f'fill-opacity="{shade:.2f}"/>')
            else:
                out.append(f'<circle class="h" cx="{cell + CELL / 2:g}" cy="{y + CELL / 2:g}" r="1.5"/>')
    return out


class Mask(SphinxDirective):
    """A picture of the weights that a call of attention gives."""

    optional_arguments = 1
    final_argument_whitespace = True
    option_spec = {
        "queries": directives.nonnegative_int, "keys": directives.nonnegative_int, "heads": directives.nonnegative_int,
        "batch": directives.nonnegative_int, "titles": directives.unchanged, "peaked": directives.flag,
    }

    def run(self):
        self.env.note_dependency(__file__)
        call = self.arguments[0] if self.arguments else ""
        get = self.options.get
        sizes = [get(name, size) for name, size in (("queries", 5), ("keys", 7), ("heads", 1), ("batch", 1))]
        found = weights(call, *sizes, "peaked" in self.options)
        call = call.replace("np.", "")
        titles = [title.strip() for title in get("titles", "").split("|")]
        count, rows, columns = found.shape
        step = columns * CELL + GAP
        width, height = max(LEFT + count * step, 70 + 7 * len(call)), TOP + rows * CELL + 6
        out = [f'<svg xmlns="http://www.w3.org/2000/svg" class="fsm-figure" role="img" viewBox="0 0 {width} {height}" '
               f'width="{width}" height="{height}" aria-label="weights with {escape(call or "no option")}">',
               f'<text class="c" x="{LEFT}" y="13">{escape(call or "no option")}</text>',
               f'<text class="n" x="12" y="{TOP + rows * CELL / 2:g}" text-anchor="middle" '
               f'transform="rotate(-90 12 {TOP + rows * CELL / 2:g})">queries</text>']
        for k, matrix in enumerate(found):
            out += panel(matrix, LEFT + k * step, titles[k] if k < len(titles) else "", "sinks" in call)
        return [nodes.raw("", "\n".join([*out, "</svg>"]), format="html")]


class Flow(SphinxDirective):
    """Boxes in a column, each a line `title: text`, with arrows between them."""

    has_content = True

    def run(self):
        self.env.note_dependency(__file__)
        lines = [line.partition(": ")[::2] for line in self.content if line.strip()]
        width, box, gap = 640, 48, 24
        height = len(lines) * (box + gap) - gap + 2
        out = [f'<svg xmlns="http://www.w3.org/2000/svg" class="fsm-figure" role="img" viewBox="0 0 {width} {height}" '
               f'width="{width}" height="{height}" aria-label="{escape("; then ".join(title for title, _ in lines))}">']
        for k, (title, text) in enumerate(lines):
            y = 1 + k * (box + gap)
            out.append(f'<rect class="b" x="1" y="{y}" width="{width - 2}" height="{box}" rx="5"/>'
                       f'<text class="t" x="14" y="{y + 20}">{escape(title)}</text>'
                       f'<text x="14" y="{y + 38}">{escape(text)}</text>')
            if k < len(lines) - 1:
                x, end = 40, y + box + gap - 3
                head = f"M{x - 5} {end - 7}L{x} {end}L{x + 5} {end - 7}"
                out.append(f'<path class="a" d="M{x} {y + box + 2}V{end}{head}"/>')
        return [nodes.raw("", "\n".join([*out, "</svg>"]), format="html")]


def setup(app):
    app.add_directive("mask", Mask)
    app.add_directive("flow", Flow)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
