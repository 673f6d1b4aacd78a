"""Where the time of an explanation goes, by kind of work, beside a plain input gradient.

    python -m experiments.profile                        ViT-B/16, ResNet-50 and ConvNeXt-T, batch 1
    python -m experiments.profile --write                and into docs/performance.md
    python -m experiments.profile --models swin_tiny --batch 8

The time inside torch's kernels comes from torch's profiler; what is left of the call is Python,
autograd's bookkeeping and dispatch. What the constants cost is the difference between the last two
columns. The profiler slows the call down: the last line is the call without it.
"""

from __future__ import annotations

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own lines; read on import

import gc
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from experiments import timing
from experiments.command import Command
from experiments.modes import MODES
from experiments.report import environment, table
from experiments.timed_models import SUBJECTS

COMMAND = Command("profile", __doc__, "threads", "write", threads=2)
COMMAND.choose("model", SUBJECTS, ["vit_base", "resnet50", "convnext_tiny"])
COMMAND.add("--batch", type=int, default=1)
COMMAND.add("--calls", type=int, default=5)
COLUMNS = {
    "gradient": "plain gradient",
    "contribution": "C_w ⊙ X alone",
    "explain": "with bias",
}
OUTSIDE = "Python, autograd, dispatch"

# The first pattern that is found in the name of an operator decides.
KINDS: dict[str, str] = {
    "attention and batched products": r"attention|softmax|baddbmm|\bbmm",
    "convolution": r"conv",
    "matrix products": r"addmm|\bmm\b|matmul|linear|\bmv|addmv|\bdot\b|einsum",
    "normalisation": r"norm(?!al)|rsqrt|\bvar|\bmean",
    "moving and filling": r"copy|clone|contiguous|_to_copy|empty|zero|fill|cat\b|stack|resize"
    r"|view|reshape|permute|transpose|expand|slice|select|unbind|split|index|gather|scatter|roll"
    r"|as_strided|narrow|squeeze|detach|alias|\bt\b|unfold|flatten|chunk|pad",
    "pointwise and sums": r"^aten::",
}


def kind_of(name: str) -> str:
    """``"aten::convolution_backward"`` -> ``"convolution"``."""
    return next((kind for kind, found in KINDS.items() if re.search(found, name)), OUTSIDE)


def by_kind(call: Callable[[], object], calls: int) -> dict[str, float]:
    """Milliseconds of each kind of work in one call, the mean of several."""
    spent: Counter[str] = Counter()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        whole = 1e3 * (time.perf_counter() - start)
    for event in recorded.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1e3
    spent[OUTSIDE] = whole - sum(t for kind, t in spent.items() if kind != OUTSIDE)
    return {kind: spent[kind] / calls for kind in [*KINDS, OUTSIDE]} | {"profiled": whole / calls}


def profiled(name: str, batch: int, calls: int) -> list[list[str]]:
    """The lines of one model: kinds of work, the whole, and the whole without the profiler."""
    subject = SUBJECTS[name]
    model, x = subject.load(batch, "cpu", torch.float32)
    run = {mode: (lambda mode=mode: MODES[mode](subject, model, x)) for mode in COLUMNS}
    plain = timing.paired(run, calls)
    spent = {mode: by_kind(run[mode], calls) for mode in COLUMNS}
    lines = []
    for kind in spent["gradient"]:
        label = "**whole call, profiled**" if kind == "profiled" else kind
        lines.append([subject.label, label, *(f"{spent[m][kind]:.1f}" for m in COLUMNS)])
    medians = (f"{1e3 * statistics.median(plain[mode]):.1f}" for mode in COLUMNS)
    lines.append([subject.label, "**whole call, without the profiler**", *medians])
    return lines


def report(names: Iterable[str], batch: int, calls: int) -> str:
    rows = [line for name in names for line in profiled(name, batch, calls)]
    header = ["milliseconds", "kind of work", *COLUMNS.values()]
    note = f"batch {batch}, the mean of {calls} calls; {environment()}"
    return f"{table(header, rows)}\n\n{COMMAND.written()}: {note}."


def main(words: Sequence[str] | None = None) -> None:
    a = COMMAND.parse(words)
    with COMMAND.resumable():
        text = report(a.models, a.batch, a.calls)
    COMMAND.publish(a, "performance.md", profile=text)


if __name__ == "__main__":
    main()
