"""Results are values, and so is what a model or a caller keeps of a run."""

import copy
import dataclasses
import gc
import io
import pickle
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import omenn
from omenn import xdnn
from omenn.engine.trace.marks import MARK
from omenn.explanation import leaves


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


MLP = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()


class Sums(nn.Module):
    """Two inputs with one gradient, which is no memory of its own."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a + b).sum(1, keepdim=True)


RESULTS: dict[str, Any] = {
    "picture": lambda x: omenn.explain(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).eval(), x, 0
    ),
    "table": lambda x: omenn.explain(MLP, x, 1),
    "separate": lambda x: omenn.explain(MLP, x, 1, bias="separate"),
    "at": lambda x: omenn.explain(MLP, x, 1, at="0"),
    "identity": lambda x: omenn.explain(nn.Identity().eval(), x, lambda out: out[:, 0]),
    "two": lambda x: omenn.explain(Sums().eval(), (x, x), 0),
    "dict": lambda x: omenn.explain(Sums().eval(), {"a": x, "b": x}, 0),
    "twice": lambda x: omenn.explain(MLP, x, 1, create_graph=True),
    "saliency": lambda x: omenn.explain(MLP, x, 1, method="saliency"),
    "abslrp": lambda x: omenn.explain(MLP, x, 1, method="abslrp"),
}


def parts(e: omenn.Explanation) -> list[Tensor]:
    fields = (e.output, e.target, e.inputs, e.weight, e.contribution, e.bias, e.matrix)
    return [t for field in (*fields, e.residual, e.magnitude) for t in leaves(field)]


@pytest.mark.parametrize("name", RESULTS)
def test_each_tensor_of_a_result_is_its_own(name: str) -> None:
    x = torch.randn(2, 1, 5, 5) if name == "picture" else torch.randn(2, 3)
    before = x.clone()
    e = RESULTS[name](x)
    found = parts(e)
    assert all(type(t) is Tensor for t in found)
    assert all(not t.requires_grad for t in found) or name == "twice"
    for k, t in enumerate(found):
        others = [o.detach().clone() for o in found]
        t.detach().fill_(7)
        for o, was in zip(found[:k] + found[k + 1 :], others[:k] + others[k + 1 :], strict=True):
            assert torch.equal(o.detach(), was)
        assert torch.equal(x, before)


def test_a_result_is_a_snapshot_of_the_inputs() -> None:
    x = torch.randn(2, 3)
    e, op, rows = omenn.explain(MLP, x, 1), omenn.operator(MLP, x), omenn.rows(MLP, x, [0])
    before = x.clone(), e.matrix.clone(), op @ op.input + op.constant, rows.weight.clone()
    x.zero_()
    assert torch.equal(e.inputs, before[0])
    assert torch.equal(op.input, before[0].flatten())
    assert torch.equal(op @ op.input + op.constant, before[2])
    assert torch.equal(rows.weight, before[3])


def test_a_parameter_as_the_input_is_not_in_the_result() -> None:
    x = nn.Parameter(torch.randn(1, 3))
    for twice in (False, True):
        e = omenn.explain(MLP, x, 1, create_graph=twice)
        assert e.inputs is not x
        assert type(e.inputs) is Tensor


@pytest.mark.parametrize("target", [None, 1, torch.tensor([1, 0]), lambda out: out[:, 1]])
def test_results_of_every_entry_are_copied(target: Any) -> None:
    x = torch.randn(2, 3)
    e, certificate = omenn.explain(MLP, x, target), omenn.certify(MLP, x, target)
    rows, op = omenn.rows(MLP, x, [1, target]), omenn.operator(MLP, x)
    assert torch.equal(dataclasses.asdict(e)["matrix"], e.matrix)
    assert torch.equal(dataclasses.asdict(certificate)["relative"], certificate.relative)
    for copied in (copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
        assert torch.equal(copied(e).matrix, e.matrix)
        assert torch.equal(copied(certificate).residual, certificate.residual)
        assert torch.equal(copied(rows).weight, rows.weight)
        closed = copied(op)
        assert torch.equal(closed.value, op.value)
        with pytest.raises(omenn.ModelError):
            closed.rmatvec(op.value)
    assert op.rmatvec(op.value).shape == (6,)


def test_results_are_equal_to_themselves_alone() -> None:
    x = torch.randn(2, 3)
    for make in (
        lambda: omenn.explain(MLP, x),
        lambda: omenn.certify(MLP, x),
        lambda: omenn.rows(MLP, x, [0]),
        lambda: omenn.operator(MLP, x).svd(1),
    ):
        a, b = make(), make()
        assert a == a
        assert a != b
        assert len({a, b, a}) == 2


def test_contrasts_are_equal_by_their_classes() -> None:
    one, same = omenn.Contrast(torch.tensor([1, 2]), 0), omenn.Contrast(torch.tensor([1, 2]), 0)
    assert one == same
    assert hash(one) == hash(same)
    assert one != omenn.Contrast(torch.tensor([1, 1]), 0)
    assert omenn.Contrast(1, "rest") == omenn.Contrast(1, "rest")
    assert len({omenn.Contrast(1, 0), omenn.Contrast(1, 0), omenn.Contrast(0, 1)}) == 2


def test_a_run_may_be_copied_while_it_goes_on() -> None:
    """What refers to the engine is copied without harm: nothing in it is raw memory."""

    class Copies(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.tanh()
            mark = y.__dict__.get(MARK)  # there is none in the ordinary pass
            for _ in range(3 if mark is not None else 0):
                copy.copy(mark.owner.followed.active)
                copy.deepcopy(mark.owner.followed.active)
            return y

    for _ in range(20):
        assert omenn.explain(Copies().eval(), torch.randn(1, 3), 0).exact


def test_a_result_is_sent_from_another_thread() -> None:
    x, found = torch.randn(2, 3), []
    thread = threading.Thread(target=lambda: found.append(omenn.explain(MLP, x)))
    thread.start()
    thread.join()
    assert torch.equal(found[0].matrix, omenn.explain(MLP, x).matrix)
    assert MARK not in found[0].target.__dict__
