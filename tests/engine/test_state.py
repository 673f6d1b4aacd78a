"""A model that changes itself is as it was after every entry, and has the same answer each time."""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import omenn
from omenn import xdnn
from omenn.engine.model_state import State, modules_behind
from products import spread


class Changing(nn.Module):
    """Changes itself in its forward pass in one way; ``factor`` tells how often it was called."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.layer, self.head = how, nn.Linear(3, 4), nn.Linear(4, 3)
        self.register_buffer("calls", torch.ones(2))
        self.register_buffer("mean", torch.zeros(4))
        self.count, self.tensor, self.features = 1, torch.ones(2, 2), [torch.ones(1)]
        self.table: dict[str, Any] = {"count": 1, "seen": [1]}
        self.names = {"a"}
        self.pair = (["first"], torch.ones(1))
        self.cache: Tensor | None = None
        self.fail = False

    def factor(self, h: Tensor) -> Any:
        calls = self.get_buffer("calls")
        if self.how == "buffer in place":
            view = calls[1:]
            calls.add_(1)
            return view
        if self.how == "view of a buffer":
            calls[0] += 1
            return calls[0]
        if self.how == "out":
            torch.add(calls, 1, out=calls)
            return calls[0]
        if self.how == "buffer replaced":
            self.calls = calls + 1
            return self.calls[0]
        if self.how == "moving average":
            with torch.no_grad():
                self.mean = 0.5 * self.get_buffer("mean") + h.mean(0)
            return 1
        if self.how == "buffer deleted":
            del self._buffers["mean"]
            return 1
        if self.how == "parameter":
            with torch.no_grad():
                self.head.bias.mul_(2)
            return 1
        if self.how == "data":
            self.head.bias.data = self.head.bias.data * 2
            return 1
        return self.in_python(h)

    def in_python(self, h: Tensor) -> Any:
        if self.how == "number":
            self.count += 1
            return self.count
        if self.how == "tensor attribute":
            self.tensor.mul_(3)
            return self.tensor[0, 0]
        if self.how == "cache written":
            self.tensor[:, :1] = h[:2, :1].detach() * 0 + 1
            return 1
        if self.how == "list":
            self.features.append(h.detach())
            return len(self.features)
        if self.how == "dict":
            self.table["count"] += 1
            self.table["seen"].append(2)
            self.table["new"] = h
            return self.table["count"] + len(self.table["seen"])
        if self.how == "tuple":
            self.pair[0].append("next")
            self.pair[1].mul_(2)
            return self.pair[1] + len(self.pair[0])
        if self.how == "set":
            self.names.add(str(len(self.names)))
            return len(self.names)
        if self.how == "first call":
            self.cache = torch.full((1,), 2.0) if self.cache is None else self.cache * 2
            return self.cache
        if self.how == "module":
            self.extra = nn.Identity()
            self.layer.weight.requires_grad_(False)
            self.head.training = True
            return 2
        if self.how == "random":
            return torch.rand(()) + random.random() + np.random.rand()
        raise AssertionError(self.how)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).relu()
        factor = self.factor(h)
        if self.fail:
            raise ValueError("late")
        return self.head(h) * factor


WAYS = (
    "buffer in place", "view of a buffer", "out", "buffer replaced", "moving average",
    "buffer deleted", "parameter", "data", "number", "tensor attribute", "cache written", "list",
    "dict", "tuple", "set", "first call", "module", "random",
)  # fmt: skip


def of_tensor(t: Tensor) -> tuple[Any, ...]:
    return id(t), t.data_ptr(), t._version, t.requires_grad, t.tolist(), sorted(t.__dict__)


def of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return of_tensor(value)
    if isinstance(value, dict):
        return id(value), [(k, of(v)) for k, v in value.items()]
    if isinstance(value, (list, set, tuple)):
        return id(value), [of(v) for v in value]
    return value if isinstance(value, (int, str)) else id(value)


def state_of(model: nn.Module) -> Any:
    numbers = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    return [{k: of(v) for k, v in vars(m).items()} for m in model.modules()], numbers


def entries() -> dict[str, Callable[[nn.Module, Tensor], Any]]:
    return {
        "explain": lambda m, x: omenn.explain(m, x, 1).output[0],
        "at": lambda m, x: omenn.explain(m, x, 1, at="layer").output[0],
        "twice": lambda m, x: omenn.explain(m, x, 1, create_graph=True).output[0],
        "scalar": lambda m, x: omenn.explain(m, x, lambda out: out[0, 1]).output[0],
        "rows": lambda m, x: omenn.rows(m, x, [0, 1]).output[0, 1],
        "rows at": lambda m, x: omenn.rows(m, x, [0, 1], at="layer").output[0, 1],
        "certify": lambda m, x: omenn.certify(m, x, 1).explanation.output[0],  # pyright: ignore[reportOptionalMemberAccess]
        "operator": lambda m, x: omenn.operator(m, x).value[1],
        "from": lambda m, x: omenn.operator(m, x, from_="layer").value[1],
        "abslrp": lambda m, x: omenn.explain(m, x, 1, method="abslrp").output[0],
        "saliency": lambda m, x: omenn.explain(m, x, 1, method="integrated-gradients").output[0],
        "fullgrad": lambda m, x: omenn.explain(m, x, 1, method="fullgrad").output[0],
    }


@pytest.mark.parametrize(("how", "entry"), spread(WAYS, entries(), one_in=4))
def test_the_model_is_as_it_was_and_the_answer_the_same(how: str, entry: str) -> None:
    torch.manual_seed(0)
    model, x = Changing(how).eval(), torch.randn(2, 3)
    before = state_of(model)
    if (how, entry) == ("parameter", "twice"):  # gradients stay on, so PyTorch refuses the write
        with pytest.raises(omenn.ModelError):
            entries()[entry](model, x)
        assert state_of(model) == before
        return
    first = entries()[entry](model, x)
    assert state_of(model) == before
    second = entries()[entry](model, x)
    assert state_of(model) == before
    with torch.no_grad():
        assert torch.equal(first, second)
        assert torch.allclose(first, model(x)[0, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("how", "entry"),
    spread(WAYS, ["explain", "at", "rows", "certify", "operator", "abslrp"], one_in=3),
)
def test_after_an_exception_in_the_forward_pass(how: str, entry: str) -> None:
    model, x = Changing(how).eval(), torch.randn(2, 3)
    model.fail = True
    before = state_of(model)
    with pytest.raises(omenn.OmennError):
        entries()[entry](model, x)
    assert state_of(model) == before


def test_homogeneity_of_a_model_that_changes() -> None:
    for how in WAYS:
        model, x = Changing(how).eval(), torch.randn(2, 3)
        before = state_of(model)
        xdnn.check(model, x)
        assert state_of(model) == before, how


def test_a_graph_of_the_caller_survives() -> None:
    """The version of a buffer is as before: what was computed with it can be pulled back."""
    model = Changing("buffer in place").eval()
    w = torch.ones(2, requires_grad=True)
    y = (w * model.get_buffer("calls")).sum()
    omenn.explain(model, torch.randn(2, 3), 1)
    (gradient,) = torch.autograd.grad(y, w)
    assert gradient.tolist() == [1, 1]


def test_weights_tied_in_one_memory_are_written_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("all", torch.arange(6.0))
            self.register_buffer("part", self.get_buffer("all")[2:4])

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("all").add_(1)
            return x * self.get_buffer("part")

    model, x = Tied().eval(), torch.randn(1, 2)
    e = omenn.explain(model, x, 0)
    assert torch.allclose(e.weight, torch.tensor([[3.0, 0.0]]))
    assert model.get_buffer("part").tolist() == [2, 3]
    assert model.get_buffer("part").data_ptr() == model.get_buffer("all")[2:].data_ptr()


def test_the_first_hook_call_stays_the_first() -> None:
    model, x, calls = nn.Linear(3, 2).eval(), torch.randn(1, 3), Counter()

    def once(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        calls["hook"] += 1
        handle.remove()
        return out * 2

    handle = model.register_forward_hook(once)
    with torch.no_grad():
        wanted = 2 * nn.functional.linear(x, model.weight, model.bias)
    for _ in range(2):
        assert torch.allclose(omenn.explain(model, x, 1).output, wanted[:, 1])
    assert len(model._forward_hooks) == 1
    assert calls["hook"] >= 2


def test_modules_behind_a_function() -> None:
    net = Changing("number").eval()

    def inner(x: Tensor) -> Tensor:
        return net(x)

    assert modules_behind(inner) == [net]
    assert modules_behind(net.forward) == [net]
    x = torch.randn(2, 3)
    before = state_of(net)
    omenn.explain(inner, x, 1)
    assert state_of(net) == before


def test_a_known_state_runs_the_ordinary_model_apart() -> None:
    model, x = Changing("buffer in place").eval(), torch.randn(2, 3)
    state = State(model)
    first = state.watched(lambda: model(x))
    with state.kept():
        assert torch.equal(model(x), first)
    assert model.get_buffer("calls").tolist() == [1, 1]


def test_batch_norm_that_keeps_its_statistics_in_evaluation() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            noise = torch.ones(4, 3) * torch.tensor([[1.0], [2], [3], [4]])
            nn.functional.batch_norm(
                noise, self.norm.running_mean, self.norm.running_var, training=True
            )
            return self.norm(x)

    model, x = Net().eval(), torch.randn(2, 3)
    before = state_of(model)
    e = omenn.explain(model, x, 1)
    assert state_of(model) == before
    assert torch.allclose(e.output, model(x)[:, 1].detach(), atol=1e-6)
