"""The exact engine: every field of an explanation, rows, operators, certificates, X networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import omenn
from golden.flat import Record, flat, tried, under, whole
from nets import Example, Plain, examples, seeded
from omenn import xdnn

OPTIONS: dict[str, list[Any]] = {
    "bias": ["attention", "uniform", "separate"],
    "products": ["left", "right"],
    "channel_dim": [0, -1],
    "at": ["auto"],
    "output": [lambda out: 2 * out],
}
TARGETS: dict[str, Callable[[int], Any]] = {
    "1": lambda batch: 1,
    "last": lambda batch: -1,
    "one a sample": lambda batch: torch.arange(batch),
    "contrast": lambda batch: omenn.Contrast(0, 2),
    "rest": lambda batch: omenn.Contrast(1, "rest"),
    "runner-up": lambda batch: omenn.Contrast(1, "runner-up"),
    "callable": lambda batch: lambda out: out[:, 0] - 2 * out[:, 1],
    "whole batch": lambda batch: lambda out: out.sum(),
}


def batch_of(example: Example) -> int:
    given = example.inputs
    return len(given if isinstance(given, Tensor) else next(iter(given.values())))


def explained(network: str) -> Record:
    """All that ``omenn.explain`` says, for each option, depth and target."""
    net, inputs, module = example = examples()[network]
    calls: dict[str, dict[str, Any]] = {"": {}}
    for option, values in OPTIONS.items():
        calls |= {f"{option} {n}": {option: value} for n, value in enumerate(values)}
    for resample in ("bilinear", "nearest", "none"):
        calls[f"at {resample}"] = {"at": module, "resample": resample}
        calls[f"mix {resample}"] = {
            "at": ["input", module],
            "mix": [0.25, 0.75],
            "resample": resample,
        }
    for name, target in TARGETS.items():
        calls[f"target {name}"] = {"target": target(batch_of(example))}
    record = {}
    for name, options in calls.items():
        call = partial(omenn.explain, net, inputs, **options)
        record |= under(name, tried(lambda call=call: whole(call())))
    return record


def rows(network: str) -> Record:
    """Rows of W(x) and b(x), one by one and together."""
    net, inputs, module = examples()[network]
    targets = [0, 2, omenn.Contrast(0, 1), lambda out: out.sum(1)]
    calls: dict[str, Any] = {"": {}, "together": {"chunk": 4}, "at": {"at": module}}
    record = {}
    for name, options in calls.items():
        call = partial(omenn.rows, net, inputs, targets, **options)
        record |= under(name, tried(lambda call=call: _rows(call())))
    return record


def _rows(r: omenn.Rows) -> Record:
    names = ("output", "weight", "bias", "exact")
    return {key: v for name in names for key, v in flat(name, getattr(r, name)).items()}


def operator(network: str) -> Record:
    """W(x) and b(x) whole, and from one module to another."""
    net, inputs, module = examples()[network]
    calls: dict[str, Any] = {
        "": {},
        "from": {"from_": module},
        "to": {"to": module},
        "chunk": {"chunk": 4},
        "left": {"products": "left"},
    }
    record = {}
    for name, options in calls.items():
        call = partial(omenn.operator, net, inputs, **options)
        record |= under(name, tried(lambda call=call: _operator(call())))
    return record


def _operator(op: omenn.Operator) -> Record:
    with op:
        v = torch.linspace(-1, 1, op.shape[1], dtype=op.input.dtype)
        u = torch.linspace(-1, 1, op.shape[0], dtype=op.input.dtype)
        return {
            "shapes": [list(op.shape), list(op.input_shape), list(op.output_shape)],
            "exact": op.exact,
            "dtype": op.dtype.name,
            "value": op.value,
            "constant": op.constant,
            "forward": op @ v,
            "back": op.rmatvec(u),
            "both": op.rmatmat(torch.stack([u, u * u], 1)) if op.shape[1] < 100 else None,
            "svd": op.svd(2).values,
        }


def certified(network: str) -> Record:
    """The certificate, without its rounding errors."""
    net, inputs, module = examples()[network]
    names = ("exact", "violations", "bias_share", "located", "unlocated", "frozen_constants")

    def record_of(found: omenn.Certificate) -> Record:
        record = {name: getattr(found, name) for name in names}
        return record | flat("sources", found.sources)

    at_module = tried(lambda: record_of(omenn.certify(net, inputs, 1, at=module)))
    return under("", tried(lambda: record_of(omenn.certify(net, inputs)))) | under("at", at_module)


def differentiated(network: str) -> Record:
    """The derivative of a map by the parameters, and autograd inside of ``frozen``."""
    net, inputs, _ = examples()[network]

    def second() -> Record:
        e = omenn.explain(net, inputs, 1, create_graph=True)
        maps = e.matrix.values() if isinstance(e.matrix, dict) else [e.matrix]
        size = torch.stack([m.square().sum() for m in maps]).sum()
        names, parameters = zip(*net.named_parameters(), strict=True)
        found = torch.autograd.grad(size, parameters, allow_unused=True)
        return dict(zip(names, found, strict=True))

    def inside() -> Record:
        x = inputs.clone().requires_grad_()
        with omenn.frozen(x):
            y = net(x)[:, 1].sum()
        return {"weight": torch.autograd.grad(y, x)[0]}

    frozen = isinstance(inputs, Tensor) and inputs.is_floating_point()
    return under("second", tried(second)) | (under("frozen", tried(inside)) if frozen else {})


class Unsupported(nn.Module):
    """The inverse of a matrix that depends on the input twice."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.operator = nn.Linear(4, 4), operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(self.inner(x).reshape(-1, 2, 2)).flatten(1)


def refused() -> Record:
    """What is raised for what cannot be explained: kinds and fields."""
    net = examples()["table"].net
    x = examples()["table"].inputs
    odd = seeded(Unsupported(torch.linalg.matrix_exp))
    calls: dict[str, Callable[[], Any]] = {
        "operator": lambda: omenn.explain(odd, x[:, :4]),
        "operator certified": lambda: omenn.certify(odd, x[:, :4]).violations,
        "NaN": lambda: omenn.explain(net, x * torch.nan),
        "empty": lambda: omenn.explain(net, x[:0]),
        "whole numbers": lambda: omenn.explain(net, x.long()),
        "shape": lambda: omenn.explain(net, x[:, :3]),
        "class": lambda: omenn.explain(net, x, 3),
        "kind of target": lambda: omenn.explain(net, x, "cat"),
        "contrast": lambda: omenn.explain(net, x, omenn.Contrast(0, 5)),
        "module": lambda: omenn.explain(net, x, at="nowhere"),
        "bias": lambda: omenn.explain(net, x, bias="none"),
        "products": lambda: omenn.explain(net, x, products="both"),
        "method": lambda: omenn.explain(net, x, method="lrp"),
        "option": lambda: omenn.explain(net, x, method="gamma", psi="none"),
        "training": lambda: omenn.explain(nn.Sequential(nn.Dropout(), net), x),
        "no model": lambda: omenn.explain(3, x),  # pyright: ignore[reportArgumentType]
        "no targets": lambda: omenn.rows(net, x, []),
        "from and at": lambda: omenn.operator(net, x, "norm", from_="norm"),
        "to itself": lambda: omenn.operator(net, x, "norm", to="norm"),
        "vector": lambda: omenn.operator(net, x) @ torch.ones(3),
        "saved": lambda: omenn.explain(net, x).save("nowhere/at/all.odd"),
        "loaded": lambda: omenn.Explanation.load("nowhere.safetensors"),
    }
    made = {name: tried(lambda call=call: {"value": call()}) for name, call in calls.items()}
    return {key: v for name, record in made.items() for key, v in under(name, record).items()}


def homogeneous() -> Record:
    """Networks without additive terms: what is proven, converted, and a prior on attributions."""
    picture = examples()["plain"].inputs
    plain, without = examples()["plain"].net, seeded(Plain(bias=False, norm=False))
    converted = xdnn.convert(plain)
    record = under("checked", tried(lambda: {"found": bool(xdnn.check(without, picture))}))
    record |= under("not", tried(lambda: {"found": bool(xdnn.check(plain, picture))}))
    record |= under("converted", {"output": converted(picture)})
    record |= under(
        "map", tried(lambda: whole(omenn.explain(without, picture, method="xgradient", check=True)))
    )
    classes = torch.tensor([0, 2])
    for method in ("xgradient", "omenn", "gradient"):
        prior = xdnn.AttributionPrior("sparsity", weight=1.0, method=method)
        record |= under(
            f"prior {method}", tried(lambda p=prior: _loss(p, without, picture, classes))
        )
    return record


def _loss(prior: Any, net: nn.Module, x: Tensor, classes: Tensor) -> Record:
    loss = prior(net, x, classes)
    names, parameters = zip(*net.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {"loss": loss, **dict(zip(names, found, strict=True))}


_OF_EACH = (explained, rows, operator, certified, differentiated)
PARTS = {
    **{f"{make.__name__} {name}": partial(make, name) for make in _OF_EACH for name in examples()},
    "refused": refused,
    "homogeneous": homogeneous,
}
