"""The report: one HTML file with everything inside, to be read by somebody who is new to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

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
from omenn.viz.panels import Case, Panel, panels
from omenn.viz.wording import (
    Verdict,
    collects,
    in_logits,
    is_omenn,
    method_of,
    number,
    sum_line,
    symbol,
    through,
    verdict,
)

MODULES_SHOWN = 12
_CHECKED = {True: Verdict("exact", "yes"), False: Verdict("not exact", "no")}


@dataclass(frozen=True)
class Report:
    """What a page says: heading, introduction, cases, certificates (heading and words)."""

    title: str
    introduction: str
    cases: Sequence[Case]
    certificates: Sequence[tuple[str, bool, str]] = ()
    sigma: float = 0.0
    footer: str = ""


def page(report: Report) -> str:
    """The report as one HTML document: no other file, no network, hardly any script.

    Cases of the same name stand in one section, in the order given.
    """
    groups: dict[str, list[Case]] = {}
    for case in report.cases:
        groups.setdefault(case.name, []).append(case)
    body = [
        _header(report, list(groups)),
        '<main id="main">',
        views(report.sigma, all(is_omenn(case.explanation) for case in report.cases)),
        *(
            _section(f"case-{index}", name, cases, report.sigma)
            for index, (name, cases) in enumerate(groups.items(), 1)
        ),
        _numbers(report.cases),
        _certificates(report.certificates),
        _limits(report),
        "</main>",
        f"<footer><p>{escape(report.footer)}</p></footer>",
        DIALOG,
    ]
    return document(report.title, body)


def _header(report: Report, names: list[str]) -> str:
    links = "".join(
        f'<li><a href="#case-{index}">{escape(name)}</a></li>'
        for index, name in enumerate(names, 1)
    )
    return f"""<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>{escape(report.title)}</h1>
<p class="lead">{escape(report.introduction)}</p>
{warnings_of([case.warning for case in report.cases])}
<div class="guide">
<h2>How to read this page</h2>
<ul>
<li>A network gives every possible answer a number, its <em>logit</em>; the largest wins.</li>
{_guide(report.cases[0])}
</ul>
<div class="bar" style="max-width:22rem" aria-hidden="true"><i></i>
<span><b>takes away</b><b>zero</b><b>adds</b></span></div>
</div>
<nav aria-label="Results"><ul>{links}
<li><a href="#numbers">All numbers</a></li><li><a href="#limits">What this does not say</a></li>
</ul></nav>
</header>"""


def _guide(case: Case) -> str:
    """What the maps of this page are, and what their sum is."""
    result = case.explanation
    colours = (
        '<strong style="color:var(--red)">Red</strong> adds, <strong style="color:var(--blue)">'
        "blue</strong>\ntakes away, white is exactly zero; the few entries beyond the ends of the "
        "bar have its last\ncolour."
    )
    if is_omenn(result):
        lines = [
            "For one input, the whole network acts like one weighted sum plus constants:\n"
            '<span class="formula">logit = ΣC</span> with\n'
            '<span class="formula">C = C<sub>w</sub> ⊙ X + C<sub>b</sub></span>.',
            f"Each map shows how much every place adds to that number.\n{colours} The parts of one "
            "logit share one bar.",
            "The entries of C add up to the logit. What is left over, the <em>residual</em>, is "
            "rounding,\nand is printed."
            if result.exact or not result.processing
            else "The entries of C add up to the logit as long as it is not changed. What is left "
            "over, the\n<em>residual</em>, is printed.",
        ]
    else:
        method = method_of(result)
        about = f": {symbols(method.summary)} ({escape(method.source)})" if method else ""
        sums = {
            "exact": "The entries of R add up to the logit; the <em>residual</em> that is printed "
            "is what is left over.",
            "approximate": "The entries of R are parts of the logit, but their sum may miss it; by "
            "how much, the\n<em>residual</em>, is printed.",
            "none": "The method promises nothing of the sum of R: its entries are no parts of the "
            "logit, and\nnumbers of two maps cannot be compared.",
        }
        lines = [
            f"R is the map of the method <em>{escape(result.method)}</em>{about}.",
            f"R shows what speaks for the answer, place by place. {colours}",
            sums[result.promise],
        ]
    if result.processing:
        steps = escape(", ".join(result.processing))
        lines.append(
            f"Every map was changed afterwards: {steps}. Sum and residual are those after."
        )
    return "\n".join(f"<li>{line}</li>" for line in lines)


def _section(anchor: str, name: str, cases: list[Case], sigma: float) -> str:
    truth = cases[0].truth
    known = f'<p class="quiet">The right answer is {escape(truth)}.</p>' if truth else ""
    answers = "\n".join(_answer(case, sigma, first=case is cases[0]) for case in cases)
    return (
        f'<section class="case" id="{anchor}">\n<h2>{escape(name)}</h2>\n{known}\n{answers}\n'
        "</section>"
    )


def _answer(case: Case, sigma: float, *, first: bool) -> str:
    """One network's answer; what a kind of panel means is said once in a section, at the first."""
    warning = f'<span class="badge warn">{escape(case.warning)}</span>' if case.warning else ""
    figures = "\n".join(
        _figure(panel, case, first or panel.key == "contrast")
        for panel in panels(case, sigma=sigma)
    )
    right = "" if case.truth is None else " (right)" if case.truth == case.target else " (wrong)"
    return f"""<article class="answer">
<h3>{escape(case.model)}: {escape(case.target)}{right}{_by(case)}</h3>
<p class="quiet">{sum_line(case.explanation, case.index)}
{badge(verdict(case.explanation))} {warning}</p>
<div class="panels">
{figures}
</div>
{_modules(case) if collects(case.explanation) else ""}
</article>"""


def _by(case: Case) -> str:
    return "" if is_omenn(case.explanation) else f", by {escape(case.explanation.method)}"


def _figure(panel: Panel, case: Case, explained: bool) -> str:
    what = f"{panel.title}, {case.name}, {case.model}"
    views = [("exact", panel.exact)]
    if panel.smoothed is not None:
        views.append(("smoothed", panel.smoothed))
    alone = len(views) == 1  # then it stays visible in either view
    images = "".join(
        image(view, what + (" (smoothed)" if name == "smoothed" else ""), "" if alone else name)
        for name, view in views
    )
    bars = "".join(bar(view.scale, "" if alone else name) for name, view in views)
    total = "" if panel.total is None else f'<p class="total">sum {number(panel.total)}</p>'
    total += f"<p>{escape(panel.note)}</p>" if panel.note else ""
    sentence = f"<p>{symbols(panel.sentence)}</p>" if explained else ""
    return (
        f"<figure>\n<h4>{symbols(panel.title)}</h4>"
        f"{picture(images, what)}\n<figcaption>{bars}{total}{sentence}</figcaption>\n</figure>"
    )


def _modules(case: Case) -> str:
    """Bars: how much of the logit came in at the pixels and at the constants of each module."""
    values = {
        name: float(share[case.index].detach()) for name, share in case.explanation.sources.items()
    }
    ranked = sorted(values.items(), key=lambda item: -abs(item[1]))
    rows = [(through(case.explanation)[0], _sum(case) - _bias_sum(case)), *ranked[:MODULES_SHOWN]]
    rest = ranked[MODULES_SHOWN:]
    if rest:
        rows.append((f"{len(rest)} other modules", sum(value for _, value in rest)))
    low = min(0.0, *(value for _, value in rows))
    span = max(0.0, *(value for _, value in rows)) - low or 1.0
    zero = -100 * low / span
    lines = []
    for name, value in rows:
        start = zero + 100 * min(0.0, value) / span
        bar = f'left:{start:.2f}%;width:{100 * abs(value) / span:.2f}%"'
        lines.append(
            f'<tr><th scope="row">{escape(name or "(model)")}</th><td>{number(value)}</td>'
            f'<td class="track"><b style="--zero:{zero:.2f}%"><i class="'
            f'{"plus" if value >= 0 else "minus"}" style="{bar}></i></b></td></tr>'
        )
    return f"""<details><summary>Where the logit comes from, module by module</summary>
<p class="quiet measure">The first line is what passed through the pixels. The others are constants
(biases, normalisation shifts, class token, positions) of the modules, the largest first.</p>
<div class="scroll"><table class="bars"><thead><tr><th class="text" scope="col">came in at</th>
<th scope="col">adds</th><td></td></tr></thead><tbody>
{chr(10).join(lines)}
</tbody><tfoot><tr><th class="text" scope="row">sum = Σ{symbol(case.explanation)}</th>
<td>{number(_sum(case))}</td><td></td></tr></tfoot></table></div></details>"""


def _numbers(cases: Sequence[Case]) -> str:
    letter = symbol(cases[0].explanation)
    constants = any(collects(case.explanation) for case in cases)
    lines = []
    for case in cases:
        seconds = "" if case.seconds is None else f"{case.seconds:.2f} s"
        bias = (
            f"<td>{number(_bias_sum(case))}</td><td>{_share(case)}</td>"
            if collects(case.explanation)
            else "<td>–</td><td>–</td>"
        )
        lines.append(
            f'<tr><th scope="row">{escape(case.name)}</th>'
            f'<td class="text">{escape(case.model)}</td>'
            f'<td class="text">{escape(case.target)}{_by(case)}</td><td>{number(_logit(case))}</td>'
            f"<td>{number(_sum(case))}</td><td>{number(_residual(case), digits=2)}</td>"
            f"{bias if constants else ''}<td>{seconds}</td></tr>"
        )
    heads = f"""<th scope="col">logit</th><th scope="col">Σ{letter}</th>
<th scope="col">residual</th>"""
    if constants:
        heads += f"""<th scope="col">Σ{letter}<sub>b</sub></th><th scope="col">bias share</th>"""
    note = f"""<p class="quiet measure">Bias share: Σ{letter}<sub>b</sub> / logit, how much of the
answer comes from constants rather than through the input; above 100 % where the input takes
away.</p>"""
    return f"""<section class="end" id="numbers"><h2>All numbers</h2>
<div class="scroll"><table><thead><tr><th class="text" scope="col">input</th>
<th class="text" scope="col">network</th><th class="text" scope="col">answer explained</th>
{heads}<th scope="col">time</th></tr></thead><tbody>
{chr(10).join(lines)}
</tbody></table></div>
{note if constants else ""}</section>"""


def _certificates(certificates: Sequence[tuple[str, bool, str]]) -> str:
    if not certificates:
        return ""
    cards = "\n".join(
        f"<div><h3>{escape(name)} {badge(_CHECKED[exact])}</h3>{_evidence(words)}</div>"
        for name, exact, words in certificates
    )
    return f"""<section class="end" id="certificate"><h2>Certificate</h2>
<p class="measure">Exactness is checked, never assumed: the rewritten network must give the same
answer, every operation on the way must be linear at fixed coefficients, and the entries must add
up.</p>
<div class="certificates">
{cards}
</div></section>"""


def _evidence(words: str) -> str:
    """The lines of a certificate below its verdict: a word, two spaces, what was found."""
    lines = []
    for line in words.splitlines()[1:]:
        heading, _, text = line.partition("  ") if line[:1].strip() else ("", "", line)
        lines.append(f"<dt>{escape(heading)}</dt><dd>{escape(text.strip())}</dd>")
    return f"<dl>{''.join(lines)}</dl>"


def _limits(report: Report) -> str:
    cases = report.cases
    if any(is_omenn(case.explanation) for case in cases):
        lines = """<li><strong>Exact is not the same as faithful.</strong> The entries add up to the
logit, but removing a red region need not lower the logit by what it shows: the coefficients change
with the input.</li>
<li><strong>Other exact maps exist.</strong> A product of two quantities that both depend on the
input can be shared out in more than one way, and each way keeps the sum.</li>
<li><strong>Where the constants are put is a choice.</strong> C<sub>b</sub> brings every bias to
the places where it acted; another placement gives another picture with the same sum.</li>"""
    elif all(in_logits(case.explanation) for case in cases):
        lines = """<li><strong>A sum is not faithfulness.</strong> Entries that add up to the logit,
or nearly, need not say by how much it falls when a region is removed.</li>"""
    else:
        lines = """<li><strong>Colours are not logits.</strong> A red region need not raise the
logit by any known amount; compare places within one map only.</li>"""
    if report.sigma:
        lines += """
<li><strong>Smoothing keeps the sum, not the places.</strong> A smoothed entry speaks for its
neighbourhood.</li>"""
    return f"""<section class="end" id="limits"><h2>What this does not say</h2>
<ul>
{lines}
</ul></section>"""


def _logit(case: Case) -> float:
    return float(case.explanation.output[case.index].detach())


def _sum(case: Case) -> float:
    return float(case.explanation.total[case.index].detach())


def _residual(case: Case) -> float:
    return float(case.explanation.residual[case.index].detach())


def _bias_sum(case: Case) -> float:
    return float(case.explanation.bias_share[case.index].detach())


def _share(case: Case) -> str:
    return f"{100 * _bias_sum(case) / _logit(case):.0f} %".replace("-", "−") if _logit(case) else ""
