"""Whatever happens during an explanation, everything around it is as it was, bit for bit."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import omenn
from opcases.case import draw
from opcases.linear import seeded

HOOKS = [name for name in vars(nn.Module()) if name.endswith("hooks")]


class Stop(nn.Module):
    """Passes its input on, or fails in the way it was told to."""

    def __init__(self) -> None:
        super().__init__()
        self.how = "none"

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "error":
            raise ValueError("the model fails")
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "unknown":
            return torch.lgamma(x)
        if self.how == "leaves":
            return x * float(x.sum())
        if self.how == "nan":
            return x * torch.tensor(float("nan"))
        if self.how == "writes":
            self.get_buffer("seen").copy_(x.mean(0))
        if self.how == "interrupt backward" and x.requires_grad:
            x.register_hook(_interrupt)
        return x


def _interrupt(grad: Tensor) -> None:
    raise KeyboardInterrupt


class Patches(nn.Module):
    """Attention over the cells of a picture, with a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(2, 4, 2, 2), nn.Parameter(torch.randn(1, 1, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)
        return self.attention(x, x, x)[0][:, 0]


BODIES: dict[str, Callable[[], list[nn.Module]]] = {
    "rows": lambda: [nn.Flatten(), nn.Linear(32, 4), nn.Tanh()],
    "convolution": lambda: [
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ],
    "attention": lambda: [Patches(), nn.LayerNorm(4), nn.GELU()],
}  # fmt: skip
FAILURES = (
    "none", "error", "interrupt", "unknown", "leaves", "nan", "writes", "interrupt backward",
    "no such class", "target raises", "target interrupted", "wrong shape", "no such module",
)  # fmt: skip


def built(kind: str, how: str, flags: int) -> nn.Sequential:
    stop = Stop()
    stop.how = how
    stop.register_buffer("seen", torch.zeros(4))
    net = seeded(nn.Sequential(*BODIES[kind](), stop, nn.Linear(4, 3)))
    for k, p in enumerate(net.parameters()):
        p.requires_grad_(bool(flags >> k & 1))
        if p.requires_grad and k % 2:
            p.grad = torch.ones_like(p)
    net[0].register_forward_hook(lambda module, args, out: None)
    net[-1].register_forward_pre_hook(lambda module, args: None)
    return net


def of_tensor(t: Tensor) -> tuple[Any, ...]:
    bits = t.detach().reshape(-1).view(torch.uint8).tolist()
    grad = None if t.grad is None else (id(t.grad), t.grad.flatten().tolist())
    return (
        bits, id(t), t.data_ptr(), t._version, t.requires_grad, t.is_leaf, grad, sorted(t.__dict__),
        t._backward_hooks,
    )  # fmt: skip


def of_model(net: nn.Module) -> list[Any]:
    found: list[Any] = [{name: of_tensor(t) for name, t in net.state_dict(keep_vars=True).items()}]
    for m in net.modules():
        found.append((type(m), m.training, {k: id(v) for k, v in m.__dict__.items()}))
        found.append([[(key, id(hook)) for key, hook in getattr(m, name).items()]
                      for name in HOOKS if hasattr(getattr(m, name), "items")])  # fmt: skip
    return found


def of_process() -> dict[str, Any]:
    """Random numbers, global settings of torch, modes, threads."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "random": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"),
                     torch.is_autocast_cache_enabled()),
        "precision": torch.get_float32_matmul_precision(),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "sdpa": (torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()),
        "mkldnn": (torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "saved": torch._C._autograd._top_saved_tensors_default_hooks(False),
        "running": threading.active_count(),
        "collector": (gc.isenabled(), gc.get_threshold()),
    }  # fmt: skip


@contextlib.contextmanager
def surrounded(how: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if how == "default dtype":
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
        elif how == "deterministic":
            stack.callback(torch.use_deterministic_algorithms, False)
            torch.use_deterministic_algorithms(True)
        elif how != "nothing":
            stack.enter_context(_AROUND[how]())
        yield


_AROUND: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "device": lambda: torch.device("cpu"),
}


def explained(how: str, net: nn.Module, x: Tensor, target: Any, options: dict[str, Any]) -> None:
    at = options.pop("at")
    if how == "frozen":
        leaf = x.clone().requires_grad_()
        with omenn.frozen(leaf, model=net):
            y = net(leaf)
        torch.autograd.grad(y.sum(), leaf)
    elif how == "rows":
        omenn.rows(net, x, [target, 0], at=at, **options)
    elif how == "certify":
        omenn.certify(net, x, target, at=at, **options)
    elif how == "operator":
        omenn.operator(net, x, at=at)
    else:
        omenn.explain(net, x, target, at=at, create_graph=how == "twice", **options)


def _raises(kind: type[BaseException]) -> Callable[[Tensor], Tensor]:
    def target(out: Tensor) -> Tensor:
        raise kind("from the target")

    return target


def _targeted(failure: str) -> Any:
    return {
        "no such class": 99,
        "target raises": _raises(ValueError),
        "target interrupted": _raises(KeyboardInterrupt),
    }.get(failure, 1)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.filterwarnings("ignore:Error detected in:UserWarning")
@settings(max_examples=150)
@given(
    kind=st.sampled_from(sorted(BODIES)),
    failure=st.sampled_from(FAILURES),
    how=st.sampled_from(["explain", "twice", "rows", "certify", "frozen", "operator"]),
    at=st.sampled_from([None, "0", "1"]),
    bias=st.sampled_from(["spatial", "uniform", "separate"]),
    products=st.sampled_from(["half", "left"]),
    around=st.sampled_from(["nothing", "default dtype", "deterministic", *_AROUND]),
    flags=st.integers(0, 1023),
)
def test_nothing_is_touched(
    kind: str, failure: str, how: str, at: str | None, bias: str, products: str, around: str,
    flags: int,
) -> None:  # fmt: skip
    net = built(kind, failure, flags)
    x = draw(2, 2, 4, 4) if failure != "wrong shape" else draw(2, 7)
    given_x = of_tensor(x)
    options = {"bias": bias, "products": products}
    if failure == "no such module":
        at = "nowhere"
    with surrounded(around):
        model, process = of_model(net), of_process()
        # What the model fails with by itself passes through ``frozen`` as it is.
        with contextlib.suppress(omenn.OmennError, KeyboardInterrupt, ValueError, RuntimeError):
            explained(how, net, x, _targeted(failure), {"at": at, **options})
        assert of_model(net) == model
        now = of_process()
        for name, value in process.items():
            assert now[name] == value, name
    assert of_tensor(x) == given_x


@pytest.mark.parametrize("how", ["error", "interrupt", "unknown", "leaves", "nan", "writes"])
def test_the_failures_of_this_test_are_failures(how: str) -> None:
    net = built("rows", how, 0)
    error = KeyboardInterrupt if how == "interrupt" else omenn.OmennError
    with pytest.raises(error):
        omenn.explain(net, draw(2, 2, 4, 4), 1)


def test_an_interrupt_in_the_backward_pass_passes_through() -> None:
    def stopped(call: Any) -> Tensor:
        return call.frozen(call.active[0], call.value(), _interrupt)

    with omenn.rules({"i0": stopped}), pytest.raises(KeyboardInterrupt):
        omenn.explain(torch.special.i0, draw(2, 3), 1)
