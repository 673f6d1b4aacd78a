"""Numbers that leave PyTorch: a log or a record may have them, the computation may not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import omenn
from nets.small import ROWS
from nets.wrapped import BODY, HEAD, plain
from opcases.case import draw
from opcases.linear import seeded

LOG: list[Any] = []


LOGGED: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda h: h.mean().item(),
    "float": lambda h: float(h.max()),
    "tolist": lambda h: h.tolist(),
    "numpy": lambda h: h.detach().cpu().numpy(),
    "asarray": lambda h: np.asarray(h.detach()),
    "math": lambda h: math.sqrt(h.square().sum()),
    "format": lambda h: f"{h.mean():.3f}",
    "of an operator without a rule": lambda h: torch.quantile(h, 0.5).item(),
    "of a loss": lambda h: nn.functional.cross_entropy(h, torch.tensor([0, 1, 2])).item(),
    "random": lambda h: (h + torch.randn_like(h)).std().item(),
    "whole": lambda h: int(h.abs().sum() * 10),
}


@pytest.mark.parametrize("name", LOGGED)
def test_what_is_logged_does_not_matter(name: str) -> None:
    def model(x: Tensor) -> Tensor:
        h = torch.relu(BODY(x))
        LOG.append(LOGGED[name](h))
        return HEAD(h)

    right = omenn.explain(plain, ROWS, 1)
    for target in (1, None, lambda z: z[:, 1], omenn.Contrast(0, 1)):
        assert omenn.explain(model, ROWS, target).exact
    e = omenn.explain(model, ROWS, 1)
    assert torch.equal(e.weight, right.weight)
    assert torch.equal(e.matrix, right.matrix)
    assert omenn.certify(model, ROWS, 1).exact
    LOG.clear()
    torch.manual_seed(0)
    with torch.no_grad():
        model(ROWS)
    torch.manual_seed(0)
    omenn.explain(model, ROWS, 1)
    np.testing.assert_equal(LOG[-1], LOG[0])  # the last is of the true pass


def test_rows_operator_and_methods() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            LOG.append(x.mean().item())
            return self.head(x)

    net = seeded(Net())
    rows = omenn.rows(net, ROWS, [0, 1, 2])
    torch.testing.assert_close(rows.weight[0], net.head.weight.detach())
    with omenn.operator(net, ROWS[:1]) as op:
        torch.testing.assert_close(op.to_dense(), net.head.weight.detach())
    e = omenn.explain(net, ROWS, 1, method="input-x-gradient")
    torch.testing.assert_close(e.contribution, ROWS * net.head.weight[1].detach())


def test_a_hook_may_keep_what_it_sees() -> None:
    kept: list[np.ndarray] = []

    def keep(module: nn.Module, inputs: Any, out: Tensor) -> None:
        kept[:] = [out.detach().cpu().numpy()]

    net = seeded(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))
    right = omenn.explain(net, ROWS, 1)
    net[1].register_forward_hook(keep)
    e = omenn.explain(net, ROWS, 1)
    assert e.exact
    assert torch.equal(e.weight, right.weight)
    np.testing.assert_allclose(kept[0], net[1](net[0](ROWS)).detach().numpy(), rtol=1e-12)


def _assigned(x: Tensor) -> Tensor:
    out = torch.zeros(3, 4).double()
    for i in range(4):
        out[:, i] = x[0, i].item() * 2
    return HEAD(x) + HEAD(out)


def _array(x: Tensor) -> Tensor:
    a = x.detach().numpy()
    a += 1
    return HEAD(x) + torch.from_numpy(a)[:, :3]


def test_a_deep_copy_is_followed() -> None:
    def model(x: Tensor) -> Tensor:
        LOG.append(copy.deepcopy(torch.tan(x).detach()))
        return HEAD(copy.deepcopy(x.detach()))

    e = omenn.explain(model, ROWS, 1)
    torch.testing.assert_close(e.weight, HEAD.weight[1].expand(3, 4).detach())
    torch.testing.assert_close(LOG[-1], torch.tan(ROWS))


USED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "assigned": ("item", _assigned),
    "scale": ("__float__", lambda x: HEAD(x / float(x.abs().max()))),
    "ratio": ("item", lambda x: HEAD(x) * (x.max().item() / x.min().item())),
    "difference": ("item", lambda x: HEAD(x) + (x.max().item() - x.min().item())),
    "array": ("numpy", _array),
    "list": ("tolist", lambda x: HEAD(x) + torch.tensor(x[:, :3].tolist()).double()),
    "of an operator without a rule": ("item", lambda x: HEAD(x) * torch.quantile(x, 0.5).item()),
    "whole numbers as fractions": ("__int__", lambda x: HEAD(x) + int(x.sum() * 1e9) / 1e9),
    "beside one that is logged": (
        "tolist",
        lambda x: (LOG.append(x.mean().item()), HEAD(x) * max(x[0].tolist()))[1],
    ),
}


@pytest.mark.parametrize("name", USED)
def test_what_the_model_computes_with_is_refused(name: str) -> None:
    operator, model = USED[name]
    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(model, ROWS, 1)
    assert caught.value.operator == operator
    assert not omenn.certify(model, ROWS, 1).exact


def test_a_hook_that_computes_is_named() -> None:
    def scaled(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        return out * out.abs().max().item()

    net = seeded(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))
    net[1].register_forward_hook(scaled)
    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(net, ROWS, 1)
    assert (caught.value.operator, caught.value.module) == ("item", "1")
    assert "'scaled'" in str(caught.value)


def test_frozen_refuses_at_once() -> None:
    x = ROWS.clone().requires_grad_()
    with pytest.raises(omenn.UnsupportedOperator), omenn.frozen(x):
        x.sum().item()


def test_random_numbers_go_on_as_after_one_run() -> None:
    def model(x: Tensor, log: bool) -> Tensor:
        noise = torch.rand_like(x)
        if log:
            LOG.append(x.mean().item())
        return HEAD(x * noise)

    found = []
    for log in (False, True):
        torch.manual_seed(5)
        e = omenn.explain(lambda x, log=log: model(x, log), ROWS, 1)
        found.append((e.weight, torch.rand(1)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_other_inputs_are_not_shaken() -> None:
    x = draw(2, 4)
    scale = torch.tensor(2.0).double()

    def model(x: Tensor) -> Tensor:
        LOG.append(x.sum().item())
        return HEAD(x) * scale.item()

    e = omenn.explain(model, x, 1)
    torch.testing.assert_close(e.weight, 2 * HEAD.weight[1].expand(2, 4).detach())


def test_text_may_be_logged_and_not_computed_with() -> None:
    x = torch.randn(1, 4).double()

    def logs(x: Tensor) -> Tensor:
        assert f"{x.mean():.3f}"
        return x.sum(1, keepdim=True)

    torch.testing.assert_close(omenn.explain(logs, x, 0).matrix, x)
    with pytest.raises(omenn.UnsupportedOperator) as error:
        omenn.explain(lambda x: x.sum(1, keepdim=True) * float(f"{x.sum():.6f}"), x, 0)
    assert error.value.operator == "__format__"
