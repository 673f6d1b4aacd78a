"""Results are values, and so is what a model or a caller keeps of a run."""

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn
from omenn import xdnn
from omenn.core.lifetime import MARK


class Keeping(nn.Module):
    """Keeps what it computes outside of itself, in every form that a tensor may have."""

    def __init__(self, kept: dict[str, Tensor], detach: bool = True) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.kept, self.detach = kept, detach

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).tanh()
        found = {"value": h, "view": h[:, :2], "reshaped": h.reshape(-1, 3).t()}
        found["weights"] = h.softmax(-1)
        found["chunk"] = h.chunk(2, -1)[1]
        found["buffer"] = torch.zeros(x.shape[0], 6)
        found["buffer"][:, 1:3].copy_(h[:, :2])
        found["largest"] = h.argmax(-1)
        self.kept.update({k: t.detach() if self.detach else t for k, t in found.items()})
        return self.head(h)


def expected(model: nn.Module, kept: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        model(x)
    return {k: t.clone() for k, t in kept.items()}


ENTRIES = {
    "explain": lambda m, x: omenn.explain(m, x, 1),
    "largest": lambda m, x: omenn.explain(m, x),
    "at": lambda m, x: omenn.explain(m, x, 1, at="layer"),
    "rows": lambda m, x: omenn.rows(m, x, [0, 1]),
    "certify": lambda m, x: omenn.certify(m, x, 1),
    "operator": lambda m, x: omenn.operator(m, x),
    "span": lambda m, x: omenn.operator(m, x, to="layer"),
    "abslrp": lambda m, x: omenn.explain(m, x, 1, method="abslrp"),
    "fullgrad": lambda m, x: omenn.explain(m, x, 1, method="fullgrad"),
    "homogeneity": lambda m, x: xdnn.check(m, x),
}


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_a_model_keeps_is_plain(entry: str, detach: bool) -> None:
    kept: dict[str, Tensor] = {}
    model, x = Keeping(kept, detach).eval(), torch.randn(2, 4)
    wanted = expected(model, kept, x)
    result = ENTRIES[entry](model, x)
    for name, t in kept.items():
        assert not t.requires_grad, name
        assert t.grad_fn is None, name
        assert MARK not in t.__dict__, name
        if entry != "homogeneity":  # it runs the model last at a multiple of the input
            assert torch.allclose(t, wanted[name].to(t), atol=1e-6), name
        assert torch.equal(torch.from_numpy(t.numpy()), copy.deepcopy(t))
    assert kept["view"].untyped_storage().data_ptr() == kept["value"].untyped_storage().data_ptr()
    assert result is not None


def test_after_an_exception_nothing_wears_a_mark() -> None:
    kept: list[Tensor] = []

    def model(x: Tensor) -> Tensor:
        kept.extend([x.exp() * x, x.view(-1)])
        raise ValueError("in the middle")

    with pytest.raises(omenn.InputError):
        omenn.explain(model, torch.randn(1, 3), 0)
    assert kept
    assert all(MARK not in t.__dict__ and not t.requires_grad for t in kept)


def test_a_target_that_keeps_the_output_keeps_numbers() -> None:
    net, x, kept = nn.Linear(3, 2).eval(), torch.randn(4, 3), []
    omenn.explain(net, x, lambda out: kept.append(out) or out[:, 0])
    (out,) = kept
    assert not out.requires_grad
    assert torch.allclose(out, net(x).detach(), atol=1e-6)


def test_the_graph_is_freed_though_the_model_keeps_features() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.__dict__["kept"] = []
            h = x.tanh()
            inner.append(weakref.ref(h))
            outside.append(h[:, :1].detach())
            return h * h

    inner: list[weakref.ref[Tensor]] = []
    outside: list[Tensor] = []
    x = torch.randn(1, 5)
    omenn.explain(Net().eval(), x, 0)
    gc.collect()
    assert torch.allclose(outside[0], x.tanh()[:, :1])
    assert outside[0].grad_fn is None
    assert inner[0]() is None


def test_an_operator_still_works_when_the_model_kept_its_output() -> None:
    x = torch.randn(1, 4)
    model = Keeping({}, detach=False).eval()
    outputs: list[Any] = []
    keep: Any = lambda module, given, out: outputs.append(out)  # noqa: E731
    model.register_forward_hook(keep)
    with omenn.operator(model, x) as op:
        assert outputs[-1].grad_fn is None
        assert op.exact
        assert torch.allclose(op @ op.input + op.constant, model(x).detach()[0], atol=1e-5)


def test_create_graph_keeps_what_the_caller_differentiates() -> None:
    first = nn.Linear(3, 4)
    net = nn.Sequential(first, nn.Tanh(), nn.Linear(4, 2)).eval()
    e = omenn.explain(net, torch.randn(2, 3), create_graph=True)
    assert all(MARK not in t.__dict__ for t in (e.target, e.output, e.matrix))
    e.matrix.square().sum().backward()
    assert first.weight.grad is not None
    assert bool(first.weight.grad.any())


def test_what_is_made_in_frozen_has_its_history_and_no_mark() -> None:
    x = torch.randn(1, 3, requires_grad=True)
    with omenn.frozen(x):
        y = (x.tanh() * 2).sum()
    assert MARK not in y.__dict__
    (w,) = torch.autograd.grad(y, x)
    assert torch.allclose(w, 2 * x.tanh() / x, atol=1e-6)


@pytest.mark.parametrize("target", [None, 1, torch.tensor([1, 0]), omenn.Contrast(0, "rest")])
def test_a_result_is_copied_saved_and_compared(target: Any) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    e = omenn.explain(net, torch.randn(2, 3), target)
    saved = io.BytesIO()
    torch.save(e, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(e),
        pickle.loads(pickle.dumps(e)),
        torch.load(saved, weights_only=False),
    ]
    for other in copies:
        assert torch.equal(other.matrix, e.matrix)
        assert torch.equal(other.target, e.target)
        assert torch.equal(other.inputs, e.inputs)
        assert other.exact
