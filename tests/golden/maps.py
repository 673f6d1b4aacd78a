"""Maps of every method on every example, with the options that change them most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import omenn
from golden.flat import Record, brief, tried, under
from nets import Example, examples

MORE: dict[str, list[dict[str, Any]]] = {
    "abslrp": [{"published": True}, {"pooling": "divided"}, {"contrastive": False}],
    "attnlrp": [{"epsilon": 0.1}],
    "composite": [
        {"rules": "epsilon-plus-flat"},
        {"rules": "epsilon-alpha2-beta1"},
        {"rules": "epsilon-gamma-box", "low": -4.0, "high": 4.0},
    ],
    "cp-lrp": [{"published": True}],
    "dave": [{"steps": 4, "published": True}, {"steps": 4, "postprocess": "published"}],
    "epsilon": [{"epsilon": 0.1}],
    "fullgrad": [{"psi": "published"}, {"published": True}],
    "gamma": [{"gamma": 1.0}],
    "generic-attention": [{"query": "mean"}, {"resample": "bilinear"}],
    "grad-cam": [{"relu": False}],
    "libragrad": [{"psi": "published"}, {"published": True}],
    "occlusion": [{"baseline": 0.5}],
    "omenn-focused": [{"steps": 2, "path": 4, "against": "rest"}],
    "reslrp": [{"gamma": 0.0}],
    "rollout": [{"heads": "max"}, {"query": "mean"}],
    "rules": [
        {"gamma": (0.1, 0.5), "beta": 0.5, "softmax": "taylor", "norm": "derivative"},
        {"pointwise": "tangent", "residual": 0.5},
    ],
    "saliency": [{"absolute": False}],
    "smoothgrad": [{"absolute": False, "noise": 0.3}],
    "xgradient": [{"check": True}],
}
FEWER_STEPS = {"dave": {"steps": 4}}
PROCESSING = ("clean", "mad", "gaussian:1", "gaussian-lossy:2", "bilateral:1,0.5")


Cases = Iterator[tuple[str, dict[str, Any]]]


def ours() -> dict[str, Any]:
    """The methods of the package; a test of the same process may have registered more."""
    every = omenn.methods().items()
    return {name: m for name, m in every if m.function.__module__.startswith("omenn.")}


def at_the_input(example: Example) -> Cases:
    """(method, options): as it is, and with each of the options above."""
    for name in ours():
        yield name, {}
        yield from ((name, options) for options in MORE.get(name, []))


def at_a_module(example: Example) -> Cases:
    """(method, options): brought to the input, and where the module's output lies."""
    for name, found in ours().items():
        if "at" in found.options:
            at = {"at": example.module, **FEWER_STEPS.get(name, {})}
            yield name, at
            yield name, {**at, "resample": "none"}


def of(network: str, cases: Callable[[Example], Cases]) -> Record:
    """The maps of one example, for each of the cases."""
    example, record = examples()[network], {}
    for name, options in cases(example):
        call = partial(omenn.explain, example.net, example.inputs, method=name, **options)
        words = ",".join(f"{option}={value}" for option, value in options.items())
        record |= under(f"{name}[{words}]", tried(lambda call=call: brief(call())))
    return record


def processed(network: str) -> Record:
    """The map of ``omenn`` after each kind of processing."""
    example, record = examples()[network], {}
    e = omenn.explain(example.net, example.inputs)
    for step in PROCESSING:
        record |= under(step, tried(lambda step=step: brief(e.processed(step))))
    return record


SLOW = {f"maps at a module of {name}": partial(of, name, at_a_module) for name in examples()}
PARTS = {
    **{f"maps of {name}": partial(of, name, at_the_input) for name in examples()},
    **{f"processed maps of {name}": partial(processed, name) for name in ("plain", "patches")},
    **SLOW,
}
