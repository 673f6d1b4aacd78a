"""The support matrix as Markdown, from the rows of a work folder."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.report import environment, table
from experiments.store import engine
from experiments.zoo_entries import GROUPS

Row = dict[str, Any]

# The worst first.
ORDER = ("crash", "memory", "time-out", "error", "unbuilt", "not exact", "unsupported", "exact")
TITLES = {
    "timm": "timm",
    "torchvision": "torchvision: classification, segmentation, video",
    "transformers": "transformers, from small configurations",
    "graphs": "torch_geometric",
}
SHORTEST = 0.02  # seconds of a gradient below which a ratio tells of the cost of a call alone
LEAST = 50.0  # megabytes of a gradient, likewise
LOCATED = 0.95  # below it the reason is stated
REASONS = {
    "token": "class token",
    "pooled": "after global pooling",
    "operator": "place lost",
    "uniform": "spread evenly",
}


def matrix(rows: Sequence[Row]) -> str:
    """Summary, then one section a group, a row a family. ``every_model`` has the variants."""
    groups = {g: [r for r in rows if r["group"] == g] for g in GROUPS}
    parts = [_summary(groups), _suspicious(rows)]
    parts += [_section(g, members) for g, members in groups.items() if members]
    return "\n\n".join(p for p in parts if p)


def _families(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["family"]].append(row)
    return dict(sorted(found.items(), key=lambda kv: kv[0].lower()))


def _worst(rows: Sequence[Row]) -> str:
    return min((r["status"] for r in rows), key=ORDER.index)


def _summary(groups: dict[str, list[Row]]) -> str:
    lines = []
    for group, rows in groups.items():
        if not rows:
            continue
        families = _families(rows)
        exact = sum(_worst(r) == "exact" for r in families.values())
        variants = _variants(rows)
        good = sum(_worst(r) == "exact" for r in variants.values())
        inside = sum(any(_inside(r) for r in rs) for rs in variants.values())
        ratios = [t for r in rows if r["size"] == "native" and (t := _time(r)) is not None]
        memory = [m for r in rows if r["size"] == "native" and (m := _memory(r)) is not None]
        lines.append(
            [TITLES[group], f"**{exact} of {len(families)}**", f"{good} of {len(variants)}",
             str(inside or "–"), _spread(ratios), _spread(memory)]
        )  # fmt: skip
    header = ["", "families exact", "models exact", "of them float32 inside", "time ratio",
              "memory ratio"]  # fmt: skip
    everything = [r for rows in groups.values() for r in rows]
    return f"{table(header, lines)}\n\n{_note(everything)}"


def _variants(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["name"]].append(row)
    return found


def _spread(values: Sequence[float]) -> str:
    if len(values) < 4:
        return f"{statistics.median(values):.2f}" if values else "–"
    low, mid, high = statistics.quantiles(values, n=4)
    return f"{mid:.2f} ({low:.2f}–{high:.2f})"


def _note(rows: Sequence[Row]) -> str:
    versions = "; ".join(
        sorted({", ".join(f"{k} {v}" for k, v in r["versions"].items()) for r in rows})
    )
    older = sum(r["engine"] != engine() for r in rows)
    mixed = f" {older} rows are of an earlier state of the engine." if older else ""
    wall = sum("ratio" in r and r.get("clock") != "processor" for r in rows)
    mixed += f" {wall} rows were timed by the clock on the wall of a busy machine." if wall else ""
    return (
        f"Written by `python -m experiments.zoo --write`: {len(rows)} rows; {versions}; "
        f"{environment()}.{mixed} Ratios (median over families, quartiles) are those of one image "
        "in float32 on one thread beside a plain input gradient of the same model."
    )


def _suspicious(rows: Sequence[Row]) -> str:
    """What would be silent otherwise: constants that move with the input, inputs that vanish."""
    found = []
    for row in rows:
        double = row.get("float64", {})
        single = double if "input_share" in double else row.get("float32", {})
        where = f"{row['group']}/{row['name']}"
        if double.get("moving_constants"):
            found.append(
                f"- {where}: a constant moves with the input in {double['moving_constants'][0]}"
            )
        if single.get("input_share", 1.0) < 1e-6:
            found.append(f"- {where}: {single['input_share']:.0e} of Σ|C| goes through the input")
        if single.get("frozen_constants"):
            named = ", ".join(single["frozen_constants"][:3])
            found.append(f"- {where}: the result tells of constants made from the input in {named}")
    head = "Models to look at twice, where a sum could be right for the wrong reason:"
    return "\n".join([head, "", *sorted(set(found))]) if found else ""


def _section(group: str, rows: Sequence[Row]) -> str:
    families = _families(rows)
    header = ["family", "variants", "result", "float64", "float32", "completed", "fidelity",
              "bias share", "located", "largest without a place", "time", "memory"]  # fmt: skip
    lines = [_family(name, members) for name, members in families.items()]
    parts = [f"## {TITLES[group]}", table(header, lines)]
    refused = [r for r in rows if r["status"] != "exact"]
    if refused:
        parts.append("Not exact or refused:\n\n" + "\n".join(sorted({_loss(r) for r in refused})))
    return "\n\n".join(parts)


def _numbers(rows: Sequence[Row], dtype: str, key: str) -> list[float]:
    return [r[dtype][key] for r in rows if key in r.get(dtype, {})]


def _shared(row: Row, key: str) -> Any:
    """A figure from float64, or from float32 where a model does not run in float64."""
    for dtype in ("float64", "float32"):
        if key in row.get(dtype, {}):
            return row[dtype][key]
    return None


def _family(name: str, rows: list[Row]) -> list[str]:
    """The worst of a family's variants; cost and shares at the native size where measured."""
    native = [r for r in rows if r["size"] == "native"] or rows
    located = [s for r in native if (s := _shared(r, "located")) is not None]
    bias = [s for r in native if (s := _shared(r, "bias_share")) is not None]
    ratios = [t for r in native if (t := _time(r)) is not None]
    memory = [m for r in native if (m := _memory(r)) is not None]
    return [
        name,
        str(len(_variants(rows))),
        _result(rows),
        _largest(_numbers(rows, "float64", "residual")),
        _largest(_numbers(rows, "float32", "residual")),
        _largest(_numbers(rows, "completed", "residual")),
        _largest(_numbers(rows, "float64", "fidelity")),
        f"{statistics.median(bias):.0%}" if bias else "–",
        f"{min(located):.0%}" if located else "–",
        _reason(native),
        f"{statistics.median(ratios):.2f}" if ratios else "–",
        f"{statistics.median(memory):.2f}" if memory else "–",
    ]


def _time(row: Row) -> float | None:
    """The time ratio, where the gradient takes long enough for one."""
    if "ratio" not in row or statistics.median(row["seconds"]["gradient"]) < SHORTEST:
        return None
    return row["ratio"]


def _memory(row: Row) -> float | None:
    """The memory ratio, where the gradient needs enough for one."""
    if "memory_ratio" not in row or row["memory"]["gradient"] < LEAST:
        return None
    return row["memory_ratio"]


def _largest(values: Sequence[float]) -> str:
    return f"{max(values):.0e}" if values else "–"


def _result(rows: Sequence[Row]) -> str:
    worst = _worst(rows)
    if worst == "exact":
        return "exact (float32 inside)" if any(_inside(r) for r in rows) else "exact"
    bad = sum(_worst(v) != "exact" for v in _variants(rows).values())
    return f"**{worst}** ({bad})"


def _inside(row: Row) -> bool:
    """Whether a float64 model computes in float32 somewhere, so that 1e-9 is out of reach."""
    return row.get("float64", {}).get("tolerance", 0.0) > 1e-9


def _reason(rows: Sequence[Row]) -> str:
    """Kinds of constants without a place, for the variant of which the least is located."""
    measured = [r for r in rows if _shared(r, "located") is not None]
    if not measured:
        return ""
    row = min(measured, key=lambda r: _shared(r, "located"))
    if _shared(row, "located") >= LOCATED:
        return ""
    kinds = [k for k in _shared(row, "unlocated") if k["share"] >= 0.02][:2]
    return "; ".join(
        f"{REASONS.get(k['kind'], k['kind'])} {k['share']:.0%} (`{k['module'] or 'model'}`)"
        for k in kinds
    )


def _loss(row: Row) -> str:
    reason = row.get("reason", "")
    for dtype in ("float64", "float32"):
        found = row.get(dtype, {})
        if found.get("status") in ("unsupported", "error"):
            reason = found["reason"]
        elif found.get("status") == "not exact":
            reason = f"{dtype} residual {found['residual']:.0e}, fidelity {found['fidelity']:.0e}"
    return f"- {row['name']} ({row['family']}): {row['status']}: {reason}".replace("|", "\\|")


def every_model(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a model and size, group by group."""
    lines = []
    for row in sorted(rows, key=lambda r: (r["family"].lower(), r["name"].lower(), r["size"])):
        located = _shared(row, "located")
        lines.append(
            {
                "group": row["group"],
                "model": row["name"],
                "parameters": f"{row['parameters'] / 1e6:.1f} M" if "parameters" in row else "–",
                "input": " ".join("×".join(map(str, s)) for s in row.get("input", [])),
                "result": row["status"],
                "float64": _largest(_numbers([row], "float64", "residual")),
                "float32": _largest(_numbers([row], "float32", "residual")),
                "completed": _largest(_numbers([row], "completed", "residual")),
                "located": f"{located:.0%}" if located is not None else "–",
                "time": f"{ratio:.2f}" if (ratio := _time(row)) is not None else "–",
            }
        )
    return pd.DataFrame(lines).sort_values(
        "group", key=lambda column: column.map(GROUPS.index), kind="stable"
    )
