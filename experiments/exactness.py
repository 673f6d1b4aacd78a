"""Is the decomposition exact on every model of the list? In float64, float32 and bfloat16.

python -m experiments.exactness                 all models, the table to the terminal
python -m experiments.exactness --write         and into docs/exactness.md and the README
python -m experiments.exactness --models ViT-B/16 --small
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track

import omenn
from experiments.command import Command
from experiments.report import ROOT, environment, table, write_block
from experiments.zoo_models import CASES, Case

TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
HEADER = ["model", *TYPES, "fidelity", "bias share", "located"]
COMMAND = Command("exactness", __doc__, "write")
COMMAND.choose("model", [case.name for case in CASES], [case.name for case in CASES])
COMMAND.add("--small", action="store_true", help="smaller images")


def measure(case: Case, small: bool) -> dict[str, omenn.Certificate]:
    """A certificate in each type."""
    found = {}
    for name, dtype in TYPES.items():
        model, inputs = case.make(dtype, small)
        found[name] = omenn.certify(model, inputs, **case.options)
    return found


def cells(case: Case, found: dict[str, omenn.Certificate]) -> list[str]:
    """Residual in each type; fidelity, bias share and located share in float64."""
    out = [case.name]
    for c in found.values():
        residual = f"{float(c.relative.max()):.0e}" + ("" if c.exact else " **not exact**")
        out.append("refused" if c.explanation is None else residual)
    double = found["float64"]
    if double.explanation is None:
        return [*out, "–", "–", "–"]
    share = float(double.bias_share.abs().median())
    return [*out, f"{double.fidelity:.0e}", f"{share:.0%}", f"{double.located:.0%}"]


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    chosen = [case for case in CASES if case.name in a.models]
    console = Console(stderr=True)
    found = [(c, measure(c, a.small)) for c in track(chosen, "certifying", console=console)]
    text = table(HEADER, [cells(case, row) for case, row in found])
    exact = sum(row[t].exact for _, row in found for t in ("float64", "float32"))
    print(f"exact in float64 and float32: {exact} of {2 * len(found)}")
    COMMAND.publish(a, "exactness.md", exactness=f"{text}\n\n{COMMAND.written()}; {environment()}.")
    if a.write:
        write_block(ROOT / "README.md", "exactness", text)


if __name__ == "__main__":
    main()
