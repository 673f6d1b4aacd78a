"""Is the decomposition exact on every model of the list? In float64, float32 and bfloat16.

python -m experiments.exactness                 all models, the table to the terminal
python -m experiments.exactness --write         and into docs/exactness.md and the README
python -m experiments.exactness --only ViT-B/16 --small
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import omenn
from experiments.report import ROOT, environment, table, write_block
from experiments.zoo_models import CASES, Case

TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(case: Case, small: bool) -> dict[str, Any]:
    """Residual and fidelity in each type, bias share and located share in float64."""
    row: dict[str, Any] = {"name": case.name}
    for name, dtype in TYPES.items():
        model, inputs = case.make(dtype, small)
        certificate = omenn.certify(model, inputs, **case.options)
        row[name] = certificate
    return row


def cells(row: dict[str, Any]) -> list[str]:
    double = row["float64"]
    out = [row["name"]]
    for name in TYPES:
        c = row[name]
        if c.explanation is None:
            out.append("refused")
        else:
            out.append(f"{float(c.relative.max()):.0e}" + ("" if c.exact else " **not exact**"))
    if double.explanation is None:
        return [*out, "–", "–", "–"]
    share = float(double.bias_share.abs().median())
    return [*out, f"{double.fidelity:.0e}", f"{share:.0%}", f"{double.located:.0%}"]


HEADER = ["model", "float64", "float32", "bfloat16", "fidelity", "bias share", "located"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--small", action="store_true", help="smaller images")
    parser.add_argument("--write", action="store_true", help="update docs and README")
    a = parser.parse_args()
    warnings.filterwarnings("ignore")
    console = Console()
    chosen = [c for c in CASES if not a.only or c.name in a.only]
    rows = []
    for case in track(chosen, "certifying", console=console, transient=True):
        rows.append(measure(case, a.small))
        console.print("  ".join(cells(rows[-1])), highlight=False)
    text = table(HEADER, [cells(r) for r in rows])
    exact = sum(r[t].exact for r in rows for t in ("float64", "float32"))
    print(f"\n{text}\n\nexact in float64 and float32: {exact} of {2 * len(rows)}")
    if a.write:
        note = f"Written by `python -m experiments.exactness --write`; {environment()}."
        write_block(ROOT / "docs" / "exactness.md", "exactness", f"{text}\n\n{note}")
        write_block(ROOT / "README.md", "exactness", text)


if __name__ == "__main__":
    main()
