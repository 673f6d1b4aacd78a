"""Many threads and many processes explain with one model: each as if it were alone."""

from __future__ import annotations

import functools
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import omenn
from nets.small import IMAGE, convnet
from nets.wrapped import X, network
from omenn.models import sources
from opcases.case import draw

THREADS = 6


def at_once(jobs: list[Callable[[], Any]], rounds: int = 2) -> list[Any]:
    """Results of the jobs, each in a thread of its own, all started together."""
    start = threading.Barrier(len(jobs))

    def work(job: Callable[[], Any]) -> Any:
        start.wait(timeout=60)
        return [job() for _ in range(rounds)][-1]

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(work, jobs))


def tiny_timm() -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model("test_vit", pretrained=False, img_size=64, num_classes=7).eval()


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str | None]]] = {
    "convolution": (convnet, tuple(IMAGE.shape[1:]), [None, "2", "4"]),
    "birds-resnet": (lambda: sources.load("birds-resnet").model, (3, 64, 64), [None]),
    "birds-vit": (lambda: sources.load("birds-vit").model, (3, 64, 64), [None]),
    "timm": (tiny_timm, (3, 64, 64), [None, "blocks.0"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_threads_share_a_model(name: str) -> None:
    """Inputs, targets, depths and options of their own; the same numbers as one after the other."""
    make, shape, places = MODELS[name]
    model = make()
    dtype = next(model.parameters()).dtype
    jobs = []
    for k in range(THREADS):
        x, at = draw(1, *shape, seed=k).to(dtype), places[k % len(places)]
        bias = ("spatial", "separate")[k % 2]
        jobs.append(functools.partial(omenn.explain, model, x, k % 3, at=at, bias=bias))
    wanted = [job() for job in jobs]
    for got, expected in zip(at_once(jobs), wanted, strict=True):
        assert torch.equal(got.weight, expected.weight)
        assert torch.equal(got.matrix, expected.matrix)
        assert set(got.sources) == set(expected.sources)
    assert not any(m._forward_hooks for m in model.modules())


class Sometimes(nn.Module):
    """Fails for inputs whose first number is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        if x[0, 0] < 0:
            raise ValueError("negative")
        return self.net(x)


def test_an_error_in_one_thread_leaves_the_others_alone() -> None:
    model, x = Sometimes().eval(), X.abs()
    wanted = omenn.explain(model, x, 1, at="net.0").matrix

    def job(k: int) -> Any:
        if k % 2 == 0:
            return omenn.explain(model, x, 1, at="net.0").matrix
        with pytest.raises(omenn.OmennError, match=r"negative|out of range"):
            omenn.explain(model, -x if k % 4 == 1 else x, 1 if k % 4 == 1 else 99, at="net.0")
        return None

    for got in at_once([functools.partial(job, k) for k in range(8)], rounds=5):
        assert got is None or torch.equal(got, wanted)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_hook_of_one_thread_does_not_act_in_another() -> None:
    """One explains at a module while the others run through the same module as it is."""
    net, plain = convnet(), convnet()
    x = draw(2, *IMAGE.shape[1:], seed=3)
    wanted = omenn.explain(plain, x, 1).matrix
    there = omenn.explain(plain, x, 1, at="2").matrix
    with torch.no_grad():
        output = plain(x)

    def call() -> Tensor:
        with torch.no_grad():
            return net(x)

    at = lambda: omenn.explain(net, x, 1, at="2").matrix  # noqa: E731
    whole = lambda: omenn.explain(net, x, 1).matrix  # noqa: E731
    got = at_once([at, whole, call, at, whole, call], rounds=10)
    for result, expected in zip(got, [there, wanted, output] * 2, strict=True):
        assert torch.equal(result, expected)


def test_threads_and_a_compiled_model() -> None:
    """The compiler's stance is one for the process; the last thread to leave puts it back."""
    from torch._dynamo import eval_frame

    model = torch.compile(network(), backend="eager")
    wanted, before = omenn.explain(network(), X, 1).matrix, eval_frame._stance
    jobs = [lambda: omenn.explain(model, X, 1).matrix] * THREADS
    for got in at_once(jobs, rounds=10):
        assert torch.equal(got, wanted)
    assert eval_frame._stance is before


def test_threads_inside_of_their_own_frozen() -> None:
    net = network()
    wanted = omenn.explain(net, X, 1).weight

    def job() -> Tensor:
        x = X.clone().requires_grad_()
        with omenn.frozen(x, model=net):
            y = net(x)[:, 1].sum()
        return torch.autograd.grad(y, x)[0]

    for got in at_once([job] * THREADS, rounds=5):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(method: str) -> None:
    """The model and the explanations are pickled; a child explains like its parent."""
    net = network()
    inputs = [draw(1, 4, seed=k) for k in range(4)]
    explain = functools.partial(omenn.explain, net, target=1)
    wanted = [explain(x) for x in inputs]
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2 if method == "fork" else 1, mp_context=context) as pool:
        got = list(pool.map(explain, inputs, timeout=120))
    for one, expected in zip(got, wanted, strict=True):
        assert torch.equal(one.matrix, expected.matrix)
        assert one.exact
        assert dict(one.sources).keys() == dict(expected.sources).keys()


class Explained(Dataset[Tensor]):
    def __init__(self, net: nn.Module, at: str | None) -> None:
        self.net, self.at = net, at

    def __len__(self) -> int:
        return 4

    def __getitem__(self, k: int) -> Tensor:
        return omenn.explain(self.net, draw(1, 4, seed=k), 1, at=self.at).matrix[0]


@pytest.mark.parametrize("at", [None, "0"])
def test_workers_of_a_data_loader(at: str | None) -> None:
    data = Explained(network(), at)
    alone = torch.stack([data[k] for k in range(4)])
    batches = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(batches)), alone)
