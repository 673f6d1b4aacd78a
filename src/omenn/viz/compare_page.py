"""The comparison as one HTML file: the maps of many methods side by side, and class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from omenn.viz.comparison import Cell, Comparison, Row, own_views, reference, shared_views
from omenn.viz.document import (
    DIALOG,
    badge,
    bar,
    document,
    image,
    picture,
    symbols,
    views,
    warnings_of,
)
from omenn.viz.panels import View
from omenn.viz.wording import PROMISES, number

Views = Mapping[str, View | None]  # class of an image → the image


def compare_page(comparison: Comparison) -> str:
    """The comparison as one HTML document: no other file, no network.

    Without script both tabs stand below each other.
    """
    body = [
        _header(comparison),
        '<main id="main">',
        _tabs(comparison),
        views(comparison.sigma, exact=False),
        _one(comparison),
        _classes(comparison),
        "</main>",
        f"<footer><p>{escape(comparison.footer)}</p></footer>",
        DIALOG,
    ]
    return document(_title(comparison), body, ("page", "compare"))


def _title(comparison: Comparison) -> str:
    count = len(comparison.rows)
    return f"{count} method{'s' * (count != 1)} on {comparison.name}"


def _header(comparison: Comparison) -> str:
    return f"""<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>{escape(_title(comparison))}</h1>
<p class="lead">Why does {escape(comparison.model)} say
<strong>{escape(comparison.target)}</strong>, logit {number(comparison.logit)}? Every method has its
own answer.</p>
{warnings_of([comparison.warning])}
<div class="guide">
<h2>How to read this page</h2>
<ul>
<li><strong style="color:var(--red)">Red</strong> speaks for the answer,
<strong style="color:var(--blue)">blue</strong> against it, white is exactly zero. What lies beyond
the ends of a bar has its last colour.</li>
<li>A method promises that its entries add up to the logit exactly, approximately, or it promises
nothing of their sum. The <em>residual</em> is the logit less the sum; it is an error only where a
sum is promised.</li>
<li>A map that looks better is not therefore truer: nothing here measures faithfulness.</li>
</ul>
</div>
</header>"""


def _tabs(comparison: Comparison) -> str:
    if not comparison.answers:
        return ""
    return f"""<div class="tabs" aria-label="What is shown" hidden>
<button type="button" id="tab-one" aria-controls="one">One answer</button>
<button type="button" id="tab-classes" aria-controls="classes">The top
{len(comparison.answers)} answers</button>
</div>"""


def _one(comparison: Comparison) -> str:
    exact = shared_views(comparison.rows)
    soft = shared_views(comparison.rows, comparison.sigma) if comparison.sigma else {}
    cards = []
    for row in comparison.rows:
        (own,) = own_views([row.cell])
        shown: dict[str, View | None] = {"one exact": exact.get(row.method), "own exact": own}
        if comparison.sigma:
            (own,) = own_views([row.cell], comparison.sigma)
            shown |= {"one smoothed": soft.get(row.method), "own smoothed": own}
        cards.append(_card(row, shown, comparison))
    return f"""<section class="tab" id="one" data-tab="tab-one">
<h2>One answer: {escape(comparison.target)}</h2>
{_scale(comparison.rows)}
<div class="methods">
{_input(comparison)}
{chr(10).join(cards)}
</div>
{_numbers(comparison.rows)}
</section>"""


def _scale(rows: Sequence[Row]) -> str:
    """The switch between one scale and each its own, and what the first one means."""
    first = reference(rows)
    if first is None:
        return ""
    there = [row for row in rows if row.cell.values is not None]
    words = f"""The bar ends at the 99.5 % quantile of {escape(first.method)}."""
    if any(row.promise == "none" for row in there):
        words += f""" A map whose sum is not promised has a unit of its own: it is rescaled so that
Σ|R| is that of {escape(first.method)}. So in maps of logits equal colours are equal numbers, and in
the others equal shares of the whole map."""
    if len({row.cell.values.size for row in there if row.cell.values is not None}) > 1:
        words += """ Where an entry covers a larger area, its number counts by area."""
    return f"""<fieldset class="views scales"><legend>Scale</legend>
<label><input type="radio" name="scale" id="scale-one" checked> one for all</label>
<label><input type="radio" name="scale" id="scale-own"> each its own</label></fieldset>
<p class="quiet measure one">{words}</p>
<p class="quiet measure own">Every bar ends at the 99.5 % quantile of its own map: colours of two
maps cannot be compared.</p>"""


def _input(comparison: Comparison) -> str:
    height, width = comparison.image.shape[:2]
    what = f"Input, {comparison.name}"
    return (
        f"<figure>\n<h3>Input</h3>{picture(image(View(comparison.image), what), what)}\n"
        f"<figcaption><p>What the network received, {width} × {height} pixels.</p></figcaption>\n"
        "</figure>"
    )


def _card(row: Row, shown: Views, comparison: Comparison) -> str:
    what = f"{row.method}, {comparison.target}, {comparison.name}"
    head = f"<h3>{escape(row.method)}</h3>"
    about = f"<p>{symbols(row.summary)}</p>"
    if row.options:
        about = f"<p><code>{escape(row.options)}</code></p>{about}"
    if row.cell.values is None:
        return (
            f'<figure class="failed">\n{head}{_reason(row.cell)}\n'
            f"<figcaption>{about}</figcaption>\n</figure>"
        )
    bars = "".join(bar(view.scale, name) for name, view in shown.items() if view)
    return f"""<figure>
{head}{_pictures(shown, what)}
<figcaption>{bars}
<p class="total">sum {number(row.cell.total)} {badge(row.cell.said)}</p>
<p class="cost">{_cost(row)}</p>
{about}</figcaption>
</figure>"""


def _pictures(shown: Views, what: str) -> str:
    images = [
        image(view, f"{what}{_how(name)}", name) for name, view in shown.items() if view is not None
    ]
    return picture("".join(images), what)


def _how(name: str) -> str:
    """What is said of a picture to those who do not see the switches."""
    words = [
        {"own": "own scale", "smoothed": "smoothed"}[part]
        for part in name.split()
        if part in {"own", "smoothed"}
    ]
    return f" ({', '.join(words)})" if words else ""


def _reason(cell: Cell) -> str:
    return f'<div class="reason"><p><strong>No map.</strong> {escape(cell.error)}</p></div>'


def _cost(row: Row) -> str:
    return f"{seconds(row.seconds)} · {memory(row.memory)}"


def seconds(value: float | None) -> str:
    """A time in few digits.

    >>> seconds(0.0123), seconds(2.346), seconds(None)
    ('12 ms', '2.35 s', '–')
    """
    if value is None:
        return "–"
    return f"{1000 * value:.0f} ms" if value < 0.9995 else f"{value:.3g} s"


def memory(value: int | None) -> str:
    """Bytes in few digits.

    >>> memory(35 * 2**20), memory(1000), memory(None)
    ('35 MB', '< 1 MB', '–')
    """
    if value is None:
        return "–"
    return f"{value / 2**20:.0f} MB" if value >= 2**20 else "< 1 MB"


def _numbers(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        cell = row.cell
        cells = '<td class="text" colspan="2">no map</td>'
        if cell.values is not None:
            cells = f"<td>{number(cell.total)}</td><td>{number(cell.residual, digits=2)}</td>"
        lines.append(
            f'<tr><th scope="row">{escape(row.method)}</th>'
            f'<td class="text">{PROMISES[row.promise]}</td>{cells}'
            f"<td>{seconds(row.seconds)}</td><td>{memory(row.memory)}</td>"
            f'<td class="text">{escape(row.source)}</td></tr>'
        )
    return f"""<h3>All numbers</h3>
<div class="scroll"><table class="numbers"><thead><tr><th class="text" scope="col">method</th>
<th class="text" scope="col">promise</th><th scope="col">sum</th><th scope="col">residual</th>
<th scope="col">time</th><th scope="col">peak memory</th>
<th class="text" scope="col">source</th></tr></thead><tbody>
{chr(10).join(lines)}
</tbody></table></div>
<p class="quiet measure">Time and peak memory are of one explanation, the median of those on this
page. Memory is an estimate: by how much the process was seen to grow while the method ran (on a
GPU, what torch had allocated).</p>"""


def _classes(comparison: Comparison) -> str:
    answers = comparison.answers
    if not answers:
        return ""
    heads = "".join(
        f'<th scope="col"><b>{escape(answer.name)}</b><span>logit {number(answer.logit)}</span>'
        f"<span>{_percent(answer.probability)}</span></th>"
        for answer in answers
    )
    lines = "\n".join(_line(row, comparison) for row in comparison.rows)
    return f"""<section class="tab" id="classes" data-tab="tab-classes">
<h2>The top {len(answers)} answers, method by method</h2>
<p class="quiet measure">One row is one method, and has one scale: within it equal colours are equal
numbers. Per cent: the share of the answer in the softmax over all logits.</p>
<div class="scroll"><table class="classes"><thead><tr><td></td>{heads}</tr></thead><tbody>
{lines}
</tbody></table></div>
</section>"""


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def _line(row: Row, comparison: Comparison) -> str:
    exact = own_views(row.classes)
    soft = own_views(row.classes, comparison.sigma) if comparison.sigma else [None] * len(exact)
    ends = {"exact": next(filter(None, exact), None), "smoothed": next(filter(None, soft), None)}
    bars = "".join(_short_bar(view, name) for name, view in ends.items() if view)
    head = (
        f'<th scope="row"><b>{escape(row.method)}</b>'
        f"<span>{PROMISES[row.promise]}</span>{bars}</th>"
    )
    if not any(exact):
        reason = _reason(row.classes[0])
        return f'<tr>{head}<td colspan="{len(comparison.answers)}">{reason}</td></tr>'
    cells = []
    for answer, cell, one, two in zip(comparison.answers, row.classes, exact, soft, strict=True):
        if one is None:
            cells.append(f"<td>{_reason(cell)}</td>")
            continue
        what = f"{row.method}, {answer.name}, {comparison.name}"
        shown: Views = {"exact": one, "smoothed": two}
        cells.append(
            f"<td>{_pictures(shown, what)}<span>sum {number(cell.total, digits=3)}</span></td>"
        )
    return f"<tr>{head}{''.join(cells)}</tr>"


def _short_bar(view: View, name: str) -> str:
    """The colours with one number below, as there is little space beside the maps."""
    end = number(view.scale or 0.0, digits=2)
    return (
        f'<div class="bar {name}"><i aria-hidden="true"></i>'
        f"<span><b>from −{end} to {end}</b></span></div>"
    )
