"""The words for a result: the symbol of its map, the verdict on its sum, numbers.

NOTE [two letters]
C is the matrix of the exact method only, and C_w ⊙ X and C_b are its parts. The map of any other
method is R, whatever it promises, so that the two are not confused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omenn.explanation import leaves

if TYPE_CHECKING:
    from omenn import Explanation

PROMISES = {"exact": "exact sum", "approximate": "approximate sum", "none": "no sum promised"}


@dataclass(frozen=True)
class Verdict:
    """The verdict on the sum of a map: words, and the kind of badge: yes, plain, warn or no."""

    words: str
    kind: str


def is_omenn(explanation: Explanation) -> bool:
    """Whether this is C of the exact method (see NOTE [two letters])."""
    return explanation.method == "omenn"


def symbol(explanation: Explanation) -> str:
    """The letter of the map: C or R."""
    return "C" if is_omenn(explanation) else "R"


def in_logits(explanation: Explanation) -> bool:
    """Whether the entries are parts of the logit, exactly or approximately."""
    return explanation.promise != "none"


def collects(explanation: Explanation) -> bool:
    """Whether the map includes the constants of the network."""
    return is_omenn(explanation) or any(bool((b != 0).any()) for b in leaves(explanation.bias))


def verdict(explanation: Explanation) -> Verdict:
    """Whether the sum is what the method promises."""
    if not in_logits(explanation):
        return Verdict("no sum promised", "plain")
    if explanation.exact and explanation.promise == "exact":
        return Verdict("exact", "yes")
    if explanation.promise == "approximate":
        return Verdict("approximate", "plain")
    if explanation.changed:
        return Verdict("sum changed by processing", "warn")
    return Verdict("not exact", "no")


def method_of(explanation: Explanation) -> Any:
    """The registered method, or None if a file names one that is not registered."""
    import omenn

    return omenn.methods().get(explanation.method)


def introduced(explanation: Explanation) -> str:
    """The end of the first sentence of a page, about its matrices."""
    changed = ", processed afterwards" if explanation.changed else ""
    if is_omenn(explanation) and not changed:
        of = f", {explanation.explains}" if explanation.explains else ""
        return f": its entries add up to the number that decided{of}"
    if changed and explanation.promise == "exact" and not explanation.exact:
        return f" of the method {explanation.method}{changed}: its sum is no longer the logit"
    return f" of the method {explanation.method}{changed} ({PROMISES[explanation.promise]})"


def through(explanation: Explanation, pixels: bool) -> tuple[str, str]:
    """Where the weights apply, and one value there, in words; ``pixels``: the input has some."""
    at = explanation.at
    if at is None:
        return ("the pixels", "each pixel") if pixels else ("the input", "each of its values")
    if isinstance(at, str):
        return f"the output of {at}", "each of its values"
    return f"a mixture of the depths {', '.join(at)}", "each value there"


def divided(explanation: Explanation, readable: Explanation | None) -> str:
    """How two maps with one sum differ, in one sentence; nothing if one of them has another sum."""
    if readable is None or not is_omenn(explanation) or readable.promise != "exact":
        return ""
    r, c = symbol(readable), symbol(explanation)
    return (
        f"{r} and {c} both add up to the logit: {c} divides it pixel by pixel by the network's own "
        f"weights for this input, which in a deep network looks like noise; {r} follows what "
        "speaks for each unit, layer by layer, and gathers it where it was seen, so that it can "
        "be read."
    )


def sum_line(explanation: Explanation, index: int = 0) -> str:
    """The explained number, the sum and the residual, joined by = or ≈ or ≠.

    >>> import omenn, torch
    >>> net = torch.nn.Linear(2, 1, bias=False).eval()
    >>> _ = net.weight.data.fill_(1)
    >>> sum_line(omenn.explain(net, torch.ones(1, 2)))
    'logit 2 = ΣC 2, residual 0'
    """
    letter = symbol(explanation)
    logit = number(float(explanation.output[index].detach()))
    total = number(float(explanation.total[index].detach()))
    residual = number(float(explanation.residual[index].detach()), digits=2)
    if not in_logits(explanation):
        return f"logit {logit}; Σ{letter} {total}"
    equals = "=" if explanation.exact else "≈" if explanation.promise == "approximate" else "≠"
    return f"logit {logit} {equals} Σ{letter} {total}, residual {residual}"


def number(value: float, digits: int = 4) -> str:
    """A number as printed on pages: few digits, a true minus sign, no e-05.

    >>> number(-12.3456), number(1.2e-7), number(0.0)
    ('−12.35', '1.2·10⁻⁷', '0')
    """
    text = f"{value:.{digits}g}"
    mantissa, _, exponent = text.partition("e")
    if 0 < abs(value) < 1e-3 and not exponent:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
    if exponent:
        raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        mantissa = f"{mantissa}·10{raised}"
    return mantissa.replace("-", "−")


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


def percent(share: float) -> str:
    """A probability in per cent.

    >>> percent(0.1234), percent(1e-5)
    ('12.3 %', '< 0.1 %')
    """
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def sentence(text: str) -> str:
    """The text with a capital letter in front.

    >>> sentence("it is odd.")
    'It is odd.'
    """
    return text[:1].upper() + text[1:]


def plural(count: int, what: str) -> str:
    """A count with its noun.

    >>> plural(1, "method"), plural(3, "method")
    ('1 method', '3 methods')
    """
    return f"{count} {what}{'' if count == 1 else 's'}"
