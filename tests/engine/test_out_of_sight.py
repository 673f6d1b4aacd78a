"""Values made where no operator can be seen: constants stay constants, what moves is refused."""

from __future__ import annotations

import ctypes
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.dlpack import to_dlpack  # pyright: ignore[reportPrivateImportUsage]

import omenn

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

X = torch.tensor([[0.3, -1.2, 0.7, 2.0]], dtype=torch.float64)
ONE = torch.ones(1, 4, dtype=torch.float64)
ARRAY = np.ones((1, 4))
OVER_ARRAY = torch.from_numpy(ARRAY)
GLOBAL = torch.zeros(1, 4, dtype=torch.float64)


def doubled(x: Tensor) -> Tensor:
    return x.detach() * 2


def doubled_without(x: Tensor) -> Tensor:
    with torch.no_grad():
        y = x * 2
    return y  # noqa: RET504  # TorchScript returns at the end


def by_numbers(x: Tensor) -> Tensor:
    out = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        out[i] = x[0, i].item() * 2
    return out[None]


def number(x: Tensor) -> float:
    return x.sum().item()


def write(x: Tensor, out: Tensor) -> None:
    out.copy_(x.detach() * 2)


def counted(n: int) -> Tensor:
    return torch.arange(n).to(torch.float64)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.detach())


class Scripts:
    """Compiled once for the tests of this file, when the first asks for one."""

    def __init__(self) -> None:
        self.made: dict[Any, Any] = {}

    def __call__(self, function: Any) -> Any:
        if function not in self.made:
            self.made[function] = torch.jit.script(function)
        return self.made[function]


script = Scripts()


def in_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []

    def run() -> None:
        with torch.no_grad():
            found.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def into(x: Tensor, target: Tensor, writer: Callable[[Tensor, Tensor], Any]) -> Tensor:
    writer(x, target)
    return target


def over_array(x: Tensor, write: Callable[[Tensor, Tensor], Any]) -> Tensor:
    """The sine of what was written into the memory of an array."""
    array = np.zeros((1, 4))
    write(torch.from_numpy(array), x)
    return torch.from_numpy(np.sin(array))


def array_over(x: Tensor) -> Tensor:
    constant = torch.zeros(1, 4, dtype=x.dtype)
    array = constant.numpy()
    constant[:, 1:] = x[:, 1:]
    return torch.from_numpy(np.sin(array))


class Capsule:
    def __init__(self, t: Tensor) -> None:
        self.t = t

    def __dlpack__(self, **options: Any) -> Any:
        return to_dlpack(self.t)  # pyright: ignore

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def by_address(x: Tensor) -> Tensor:
    constant = torch.zeros(1, 4, dtype=x.dtype)
    address = constant.data_ptr()
    constant.copy_(x)
    return torch.tensor(list((ctypes.c_double * 4).from_address(address)), dtype=x.dtype)


def filled(x: Tensor) -> Tensor:
    ARRAY[:] = in_thread(lambda: x.numpy())
    return OVER_ARRAY


MOVES: dict[str, Callable[[Tensor], Any]] = {
    "script that detaches": lambda x: script(doubled)(x),
    "script under no_grad": lambda x: script(doubled_without)(x),
    "script that reads numbers": lambda x: script(by_numbers)(x),
    "script that writes": lambda x: into(x, torch.zeros_like(ONE), script(write)),
    "script that writes into a global": lambda x: into(x, GLOBAL, script(write)),
    "scripted module": lambda x: script(MODULE)(x),
    "traced": lambda x: TRACED(x),
    "thread": lambda x: in_thread(lambda: x.tanh()),
    "script in a thread": lambda x: in_thread(lambda: script(doubled)(x)),
    "thread that writes": lambda x: into(
        x, torch.zeros_like(ONE), lambda x, out: in_thread(lambda: out.copy_(x))
    ),
    "list of a thread": lambda x: torch.tensor(in_thread(lambda: x.tolist()), dtype=x.dtype),
    "array of a thread": lambda x: torch.as_tensor(in_thread(lambda: x.numpy() * 2)),
    "bytes of a thread": lambda x: torch.frombuffer(
        bytearray(in_thread(lambda: x.numpy().tobytes())), dtype=x.dtype
    ),
    "array written in a thread": filled,
    "copy_ into an array": lambda x: over_array(x, lambda t, x: t.copy_(x.detach())),
    "item set in an array": lambda x: over_array(x, lambda t, x: t.__setitem__(slice(None), x)),
    "frozen into an array": lambda x: over_array(x, lambda t, x: t.add_(x.softmax(1))),
    "array of what is written": array_over,
    "address": by_address,
    "DLPack": lambda x: torch.from_numpy(np.from_dlpack(Capsule(x * 1)) * 2),  # pyright: ignore
    "numpy": lambda x: torch.from_numpy(x.detach().numpy() * 2),
    "asarray": lambda x: torch.from_numpy(np.asarray(x.detach()) * 2),
    "tolist": lambda x: torch.tensor(x.tolist()),
    "pickle": lambda x: pickle.loads(pickle.dumps(x.detach())),
    "text": lambda x: torch.tensor([[float(f"{v}") for v in x[0]]], dtype=x.dtype),
}
MODULE = Inner().eval()
TRACED: Any = None


@pytest.fixture(autouse=True, scope="module")
def _traced() -> None:
    global TRACED
    TRACED = torch.jit.trace(doubled, X)


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_with_the_input_is_refused(name: str) -> None:
    def model(x: Tensor) -> Tensor:
        return (MOVES[name](x) + x).sum(1, keepdim=True)

    with pytest.raises(omenn.UnsupportedOperator):
        omenn.explain(model, X, 0)
    assert not omenn.certify(model, X, 0).exact  # pyright: ignore[reportArgumentType]


def test_a_traced_module_in_a_closure_is_refused() -> None:
    traced: Any = torch.jit.trace(MODULE, X)
    with pytest.raises(omenn.UnsupportedOperator):
        omenn.explain(lambda x: (traced(x) + x).sum(1, keepdim=True), X, 0)


CONSTANT: dict[str, Callable[[], Any]] = {
    "NumPy": lambda: torch.from_numpy(np.arange(4.0)),
    "NumPy, from outside": lambda: OVER_ARRAY,
    "outside": lambda: ONE,
    "outside, written": lambda: ONE.mul_(1.0),
    "list": lambda: torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64),
    "script": lambda: script(counted)(4),
    "thread": lambda: in_thread(lambda: 3 * torch.ones(4, dtype=torch.float64)),
    "vmap": lambda: torch.vmap(lambda w: 2 * w)(ONE),
    "seeded": lambda: torch.from_numpy(np.random.default_rng(0).normal(size=4)),
    "drawn": lambda: torch.rand(4, dtype=torch.float64),
    "out=": lambda: torch.add(ONE, ONE, out=torch.empty(0, dtype=torch.float64)),
    "data": lambda: ONE.data.mul_(1.0),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_constants_made_elsewhere(name: str) -> None:
    def model(x: Tensor) -> Tensor:
        return (CONSTANT[name]() + 2 * x).sum(1, keepdim=True)

    e = omenn.explain(model, X, 0)
    assert torch.equal(e.weight, torch.full_like(X, 2.0))
    assert e.exact
    assert omenn.certify(model, X, 0).exact  # pyright: ignore[reportArgumentType]


def test_decisions_made_elsewhere() -> None:
    """The order of the numbers, found by NumPy: whole numbers are decisions, and held."""

    def model(x: Tensor) -> Tensor:
        order = in_thread(lambda: np.argsort(x.numpy()[0]))
        return (x[:, torch.from_numpy(order)] * torch.arange(4.0)).sum(1, keepdim=True)

    assert torch.equal(omenn.explain(model, X, 0).weight, torch.tensor([[1.0, 0, 2, 3]]).double())


class Deep(nn.Module):
    """What TorchScript makes of the output of ``first`` is added behind it."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.first, self.before = nn.Linear(4, 4).double(), before

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return (script(doubled)(x if self.before else y) + y).sum(1, keepdim=True)


def test_below_the_explained_module_it_is_a_constant() -> None:
    e = omenn.explain(Deep(before=True).eval(), X, 0, at="first", resample="none")
    assert torch.equal(e.weight, ONE)
    with pytest.raises(omenn.UnsupportedOperator) as caught:
        omenn.explain(Deep(before=False).eval(), X, 0, at="first", resample="none")
    assert caught.value.operator == "add"


def test_behind_an_embedding() -> None:
    table = nn.Embedding(9, 4).double()

    def model(ids: Tensor) -> Tensor:
        y = table(ids)
        return (script(doubled)(y) + y).sum(1)

    with pytest.raises(omenn.UnsupportedOperator):
        omenn.explain(model, torch.tensor([[1, 2, 3]]), 0)


NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "of a script": lambda x: ONE * script(number)(x),
    "of a thread": lambda x: torch.full_like(x, in_thread(lambda: float(x.sum()))),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_noticed_by_certify(name: str) -> None:
    def model(x: Tensor) -> Tensor:
        return (NUMBERS[name](x) + x).sum(1, keepdim=True)

    certificate = omenn.certify(model, X, 0)  # pyright: ignore[reportArgumentType]
    assert not certificate.exact
    assert "a number that changes with the input" in certificate.violations[0]


def test_numbers_of_decisions_are_held() -> None:
    def model(x: Tensor) -> Tensor:
        return (x * float((x > 0).sum().item())).sum(1, keepdim=True)

    assert omenn.certify(model, X, 0).exact  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("call", [omenn.rows, omenn.operator])
def test_every_entry_looks(call: Any) -> None:
    def model(x: Tensor) -> Tensor:
        return (script(doubled)(x) + x).sum(1, keepdim=True)

    with pytest.raises(omenn.UnsupportedOperator):
        call(model, X, [0]) if call is omenn.rows else call(model, X)
