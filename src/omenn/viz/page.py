"""The report: one self-contained HTML file, written for a newcomer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omenn.viz.document import rendered
from omenn.viz.panels import Case, Panel
from omenn.viz.wording import Verdict, collects, in_logits, is_omenn, through

MODULES_SHOWN = 12
_CHECKED = {True: Verdict("exact", "yes"), False: Verdict("not exact", "no")}


@dataclass(frozen=True)
class Report:
    """The content of a page: heading, introduction, cases, certificates (heading and words)."""

    title: str
    introduction: str
    cases: Sequence[Case]
    certificates: Sequence[tuple[str, bool, str]] = ()
    sigma: float = 0.0
    footer: str = ""


@dataclass(frozen=True)
class Answer:
    """One network on one input; ``modules``: how much of the logit comes from each."""

    case: Case
    panels: Sequence[Panel]
    modules: Sequence[tuple[str, float]]

    @property
    def whole(self) -> str:
        """The key of the first map of the explanation itself."""
        return next((panel.key for panel in self.panels if panel.key in {"c", "weight"}), "c")


def page(report: Report) -> str:
    """The report as one HTML document: no other file, no network, hardly any script.

    Cases of the same name form one section, in the given order.
    """
    sections: dict[str, list[Answer]] = {}
    for case in report.cases:
        answer = Answer(case, case.views(report.sigma), _modules(case))
        sections.setdefault(case.name, []).append(answer)
    explanations = [case.explanation for case in report.cases]
    return rendered(
        "report.html.j2",
        parts=["page"],
        title=report.title,
        footer=report.footer,
        warnings=[case.warning for case in report.cases],
        report=report,
        first=explanations[0],
        sections=sections,
        all_omenn=all(map(is_omenn, explanations)),
        any_omenn=any(map(is_omenn, explanations)),
        all_in_logits=all(map(in_logits, explanations)),
        readable=any(case.readable is not None for case in report.cases),
        constants=any(map(collects, explanations)),
        certificates=[
            (name, _CHECKED[exact], _evidence(words)) for name, exact, words in report.certificates
        ],
    )


def _modules(case: Case) -> list[tuple[str, float]]:
    """How much of the logit comes from the input, and from the constants of each module."""
    sources = case.explanation.sources.items()
    values = {name: float(share[case.index].detach()) for name, share in sources}
    ranked = sorted(values.items(), key=lambda item: -abs(item[1]))
    rest = ranked[MODULES_SHOWN:]
    rows = [
        (
            through(case.explanation, case.image is not None)[0],
            case.value("total") - case.value("bias_share"),
        ),
        *((name or "(model)", value) for name, value in ranked[:MODULES_SHOWN]),
    ]
    if rest:
        rows.append((f"{len(rest)} other modules", sum(value for _, value in rest)))
    return rows


def _evidence(words: str) -> list[tuple[str, str]]:
    """The lines of a certificate below its verdict: a word, two spaces, the finding."""
    lines = []
    for line in words.splitlines()[1:]:
        heading, _, text = line.partition("  ") if line[:1].strip() else ("", "", line)
        lines.append((heading, text.strip()))
    return lines
