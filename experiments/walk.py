"""The files that one call of ``omenn.explain`` goes through, and how often it changes file.

What a reader has to follow: every call of a function of another file is one change. Builds a net
of five layers, warms up (tables are built at the first call), and prints the route.
Run: ``python -m experiments.walk``.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import torch
from torch import nn

import omenn

HOME = str(Path(omenn.__file__).parent) + "/"


def five_layers() -> tuple[nn.Module, torch.Tensor]:
    """A net of convolution, batch norm, ReLU, pooling and a linear layer; and an input."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    return net.eval(), torch.randn(1, 3, 8, 8)


def walked() -> list[tuple[str, str]]:
    """(file of the caller, file and function called) of one call of explain, in order."""
    net, x = five_layers()
    omenn.explain(net, x, 0)
    steps: list[tuple[str, str]] = []

    def called(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(HOME):
            return
        code = frame.f_code
        steps.append((_caller(frame), f"{_short(code.co_filename)} {code.co_qualname}"))

    sys.setprofile(called)
    try:
        omenn.explain(net, x, 0)
    finally:
        sys.setprofile(None)
    return steps


def _short(path: str) -> str:
    return path.removeprefix(HOME)


def _caller(frame: FrameType) -> str:
    """The file of omenn that the call comes from, whatever of PyTorch lies between."""
    back = frame.f_back
    while back is not None and not back.f_code.co_filename.startswith(HOME):
        back = back.f_back
    return "" if back is None else _short(back.f_code.co_filename)


def changes(steps: list[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """How often one file calls another, by the two files."""
    pairs = ((caller, called.split()[0]) for caller, called in steps)
    return Counter((a, b) for a, b in pairs if a != b)


def main() -> None:
    steps = walked()
    found = changes(steps)
    for number, (caller, called) in enumerate(s for s in steps if s[0] != s[1].split()[0]):
        print(f"{number + 1:4} {caller or '(start)'} -> {called}")
    for (a, b), count in found.most_common():
        print(f"{count:4} {a} -> {b}")
    files = {called.split()[0] for _, called in steps}
    print(f"{len(files)} files, {sum(found.values())} changes of file, {len(steps)} calls")


if __name__ == "__main__":
    main()
