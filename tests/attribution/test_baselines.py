"""The methods that captum computes: its own numbers, and nothing of the caller's changed."""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.errors import InputError, MissingExtra, ModelError, TargetError

METHODS = {
    "saliency": {},
    "input-x-gradient": {},
    "integrated-gradients": {"steps": 7},
    "smoothgrad": {"steps": 4},
    "grad-cam": {"relu": False},
    "deeplift": {},
    "occlusion": {},
    "shap-gradient": {"steps": 4},
}


class Net(nn.Module):
    """Convolutions with biases; everything that bends is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 6, 3), nn.Tanh()
        )
        self.head = nn.Linear(6 * 2 * 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


def filled(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator) / max(p[0].numel(), 1) ** 0.5
    return net.double().eval()


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(5)).double()


def ran(method: str, net: Any, x: Any, target: Any = 1, **options: Any) -> Any:
    return omenn.explain(net, x, target, method=method, **{**METHODS[method], **options})


@pytest.fixture
def quiet():
    """captum itself warns of the flags and hooks that it sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- captum's own numbers ------------------------------------------------------------------------


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-14)
    assert expected.abs().max() > 1e-3


def test_saliency_is_captums(quiet: None) -> None:
    net, x = filled(Net()), images()
    for absolute in (True, False):
        own = captum.attr.Saliency(net).attribute(x.clone(), target=1, abs=absolute)
        e = ran("saliency", net, x, absolute=absolute)
        same(e.contribution, own)
        same(e.matrix, own.sum(1))
    torch.testing.assert_close(e.output, net(x)[:, 1], rtol=1e-12, atol=0)
    torch.testing.assert_close(e.residual, e.output - e.matrix.sum((1, 2)), rtol=1e-9, atol=1e-12)
    assert not e.weight.any()
    assert not e.bias.any()


def test_input_x_gradient_is_captums(quiet: None) -> None:
    net, x = filled(Net()), images()
    own = captum.attr.InputXGradient(net).attribute(x.clone(), target=1)
    same(ran("input-x-gradient", net, x).contribution, own)


def test_integrated_gradients_are_captums(quiet: None) -> None:
    net, x = filled(Net()), images()
    algorithm = captum.attr.IntegratedGradients(net)
    same(
        ran("integrated-gradients", net, x).contribution,
        algorithm.attribute(x.clone(), target=1, n_steps=7),
    )
    start = torch.full_like(x, 0.5)
    own = algorithm.attribute(x.clone(), start, target=1, n_steps=50)
    for chunk in (1, 500):
        e = ran("integrated-gradients", net, x, steps=50, baseline=0.5, chunk=chunk)
        same(e.contribution, own)
    # The residual is f(baseline), up to the quadrature.
    torch.testing.assert_close(e.residual, net(start)[:, 1].detach(), rtol=0, atol=2e-2)


def test_smoothgrad_is_captums_for_each_sample(quiet: None) -> None:
    net, x = filled(Net()), images()
    own = []
    for row in x.split(1):
        torch.manual_seed(11)
        spread = 0.2 * float(row.max() - row.min())
        own.append(
            captum.attr.NoiseTunnel(captum.attr.Saliency(net)).attribute(
                row.clone(), nt_samples=6, stdevs=spread, target=1, abs=False
            )
        )
    e = ran("smoothgrad", net, x, steps=6, noise=0.2, seed=11, absolute=False)
    same(e.contribution, torch.cat(own))
    e = ran("smoothgrad", net, x, steps=6, noise=0.2, seed=11)
    same(e.contribution, torch.cat(own).abs())
    plain = captum.attr.Saliency(net).attribute(x.clone(), target=1)
    same(ran("smoothgrad", net, x, noise=0.0).contribution, plain)


def test_shap_gradient_is_captums_for_each_sample(quiet: None) -> None:
    net, x = filled(Net()), images()
    own = []
    for row in x.split(1):
        spread = 0.1 * float(row.max() - row.min())
        drawn = torch.randn(
            5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9)
        )
        torch.manual_seed(9)
        np.random.seed(9)
        own.append(
            captum.attr.GradientShap(net).attribute(
                row.clone(), 0.5 + spread * drawn, n_samples=5, stdevs=spread, target=1
            )
        )
    e = ran("shap-gradient", net, x, steps=5, seed=9, baseline=0.5)
    same(e.contribution, torch.cat(own))


def test_deeplift_is_captums_and_sums_to_the_difference(quiet: None) -> None:
    net, x = filled(Net()), images()
    own = captum.attr.DeepLift(net).attribute(x.clone(), torch.zeros_like(x), target=1)
    e = ran("deeplift", net, x)
    same(e.contribution, own)
    grey = captum.attr.DeepLift(net).attribute(x.clone(), torch.full_like(x, 0.5), target=1)
    same(ran("deeplift", net, x, baseline=0.5).contribution, grey)
    zero = net(torch.zeros_like(x))[:, 1].detach()
    torch.testing.assert_close(e.residual, zero, rtol=0, atol=1e-6)
    inplace = filled(Net())
    inplace.body[1] = nn.ReLU(inplace=True).eval()
    same(ran("deeplift", inplace, x).contribution, own)


def test_occlusion_is_captums_once_for_all_channels(quiet: None) -> None:
    net, x = filled(Net()), images()
    own = captum.attr.Occlusion(net).attribute(x, (3, 3, 4), (3, 2, 3), baselines=0.2, target=1)
    e = ran("occlusion", net, x, window=(3, 4), stride=(2, 3), baseline=0.2)
    same(e.matrix, own[:, 0].double())
    same(e.contribution * 3, own.double())
    # One window over all: what the whole input adds.
    e = ran("occlusion", net, x, window=8)
    gain = net(x)[:, 1] - net(torch.zeros_like(x))[:, 1]
    whole = gain.detach().reshape(-1, 1, 1).expand(-1, 8, 8)
    torch.testing.assert_close(e.matrix, whole, rtol=1e-6, atol=1e-6)  # captum's are float32


def test_grad_cam_is_captums_and_resized_to_the_input(quiet: None) -> None:
    net, x = filled(Net()), images()
    for relu in (True, False):
        own = captum.attr.LayerGradCam(net, net.body).attribute(x, target=1, relu_attributions=relu)
        own = F.interpolate(own, (8, 8), mode="bilinear")[:, 0]
        e = ran("grad-cam", net, x, relu=relu)  # the last with places is the whole body
        same(e.matrix, own)
        same(e.contribution.sum(1), own)
        same(ran("grad-cam", net, x, relu=relu, layer="body").matrix, own)
    own = captum.attr.LayerGradCam(net, net.body[0]).attribute(x, target=1)
    same(ran("grad-cam", net, x, layer="body.0").matrix, own[:, 0])


class Tokens(nn.Module):
    """Patches of 4 × 4 behind a class token, two norms and what reads the class token alone."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 6, 4, 4), nn.Parameter(torch.ones(1, 1, 6))
        self.norm, self.after, self.head = nn.LayerNorm(6), nn.LayerNorm(6), nn.Linear(6, 4)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        if self.last:  # channels last, as in Swin
            return self.head(torch.tanh(self.norm(x.permute(0, 2, 3, 1))).mean((1, 2)))
        x = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).mT], 1)
        y = self.norm(x)
        x = self.after(x + F.scaled_dot_product_attention(y, y, y))
        return self.head(torch.tanh(x[:, 0]))


def test_grad_cam_of_tokens_leaves_the_class_token_out() -> None:
    net, x = filled(Tokens()), images()
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: Tensor) -> None:
        out.retain_grad()
        kept.append(out)

    handle = net.norm.register_forward_hook(keep)
    net(x)[:, 1].sum().backward()
    handle.remove()
    a, g = kept[0].detach()[:, 1:], kept[0].grad[:, 1:]  # type: ignore[index]
    tokens = (a * g.mean(1, keepdim=True)).sum(-1).reshape(-1, 2, 2)
    net.zero_grad()
    e = ran("grad-cam", net, x)
    assert torch.equal(e.matrix, ran("grad-cam", net, x, layer="norm").matrix)
    # As high as on the tokens, and the same in the mean; in the corners nothing is mixed.
    torch.testing.assert_close(e.matrix.mean((1, 2)), tokens.mean((1, 2)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(e.matrix[:, ::7, ::7], tokens, rtol=1e-9, atol=1e-12)


def test_grad_cam_knows_where_the_channels_are() -> None:
    net, x = filled(Tokens(last=True)), images()
    a = net.norm(net.patches(x).permute(0, 2, 3, 1)).detach().requires_grad_()
    f = net.head(torch.tanh(a).mean((1, 2)))[:, 1].sum()
    g = torch.autograd.grad(f, a)[0]
    own = (a.detach() * g.mean((1, 2), keepdim=True)).sum(-1)
    own = F.interpolate(own[:, None], (8, 8), mode="bilinear")[:, 0]
    same(ran("grad-cam", net, x).matrix, own)


# --- targets, inputs, batches --------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_targets_of_every_kind(method: str) -> None:
    net, x = filled(Net()), images()
    each = [ran(method, net, x, k).matrix for k in range(4)]
    largest = net(x).argmax(1)
    picked = lambda index: torch.stack([each[k][b] for b, k in enumerate(index.tolist())])  # noqa: E731
    index = torch.tensor([2, 0, 3])
    torch.testing.assert_close(ran(method, net, x, index).matrix, picked(index))
    torch.testing.assert_close(ran(method, net, x, None).matrix, picked(largest))
    torch.testing.assert_close(ran(method, net, x, lambda out: out[:, 2]).matrix, each[2])
    apart = lambda out: {"scores": out}  # noqa: E731
    found = ran(method, Wrapped(net, apart).eval(), x, 2, output="scores")
    torch.testing.assert_close(found.matrix, each[2])
    if method in ("saliency", "smoothgrad"):
        return  # magnitudes have no difference
    twice = torch.stack([net(x)]).squeeze(0).scatter(1, largest[:, None], -torch.inf).argmax(1)
    for contrast, other in (
        (omenn.Contrast(1, 3), each[3]),
        (omenn.Contrast(index, index.flip(0)), picked(index.flip(0))),
        (omenn.Contrast(largest, "runner-up"), picked(twice)),
        (omenn.Contrast(1, "rest"), (each[0] + each[2] + each[3]) / 3),
    ):
        first = picked(contrast.a) if isinstance(contrast.a, Tensor) else each[1]
        torch.testing.assert_close(ran(method, net, x, contrast).matrix, first - other)


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.after = inner, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.inner(x))


class Pair(nn.Module):
    """Two explained inputs, and a mask per sample that is no number to explain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.bend = nn.Linear(3, 4), nn.Linear(2, 4), nn.Tanh()

    def forward(self, a: Tensor, b: Tensor, keep: Tensor, scale: float = 1.0) -> Tensor:
        assert keep.dtype == torch.bool
        assert len(keep) == len(a)
        return self.bend(self.first(a) + self.second(b) * scale) * keep


def pair() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(8)
    a, b = (torch.randn(3, n, generator=generator).double() for n in (3, 2))
    keep = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.bool)
    return {"b": b, "keep": keep, "a": a, "scale": 0.5}


@pytest.mark.parametrize("method", [m for m in METHODS if m != "grad-cam"])
def test_several_inputs_as_a_dict_or_a_tuple(method: str) -> None:
    net, given = filled(Pair()), pair()
    e = ran(method, net, given)
    assert {k: v.shape for k, v in e.matrix.items()} == {"a": (3, 3), "b": (3, 2)}
    if method == "input-x-gradient":
        a, b = (given[k].clone().requires_grad_() for k in "ab")
        grads = torch.autograd.grad(net(a, b, given["keep"], 0.5)[:, 1].sum(), (a, b))
        same(e.matrix["a"], grads[0] * a)
        same(e.matrix["b"], grads[1] * b)
    if method in ("smoothgrad", "shap-gradient"):
        return  # the noise is drawn input by input, in their order
    order = (given["a"], given["b"], given["keep"], 0.5)
    found = ran(method, net, order)
    torch.testing.assert_close(found.matrix[0], e.matrix["a"])
    torch.testing.assert_close(found.matrix[1], e.matrix["b"])


@pytest.mark.parametrize("method", METHODS)
def test_alone_or_in_a_batch_it_is_the_same_map(method: str) -> None:
    net, x = filled(Net()), images()
    together = ran(method, net, x).matrix
    alone = torch.cat([ran(method, net, row[None]).matrix for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["smoothgrad", "shap-gradient"])
def test_a_seed_is_reproducible_and_another_differs(method: str) -> None:
    net, x = filled(Net()), images()
    first = ran(method, net, x, seed=4).matrix
    torch.rand(3)
    np.random.rand(3)
    assert torch.equal(first, ran(method, net, x, seed=4).matrix)
    assert (first - ran(method, net, x, seed=5).matrix).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_single_and_half_precision_stay_what_they_are(method: str) -> None:
    net, x = filled(Net()).float(), images().float()
    e = ran(method, net, x)
    assert e.matrix.dtype == torch.float32
    double = ran(method, filled(Net()), images()).matrix
    assert (e.matrix.double() - double).abs().max() <= 2e-3 * double.abs().max()
    e = ran(method, net.bfloat16(), x.bfloat16())
    assert torch.isfinite(e.matrix).all()


@pytest.mark.parametrize("method", METHODS)
def test_sequences_and_tables(method: str) -> None:
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1)).double()
    words = filled(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 2)))
    layer = {"layer": "1"} if method == "grad-cam" else {}
    assert ran(method, words, x, **layer).matrix.shape == (2, 5)
    if method == "grad-cam":
        return
    table = filled(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)))
    assert ran(method, table, x[:, :, 0]).matrix.shape == (2, 5)


# --- the caller's things -------------------------------------------------------------------------


def snapshot(net: nn.Module, *tensors: Tensor) -> list[Any]:
    found: list[Any] = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]
    found += [torch.is_grad_enabled(), list(warnings.filters), torch.is_inference_mode_enabled()]
    for t in (*tensors, *net.parameters()):
        found += [t.requires_grad, t.grad is None, t.detach().tolist(), t._version]
        found += [t._backward_hooks]
    for m in net.modules():
        state = {k: list(v) if isinstance(v, dict) else id(v) for k, v in m.__dict__.items()}
        found.append(state)
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("requires", [False, True])
def test_nothing_of_the_caller_is_changed(method: str, requires: bool) -> None:
    net, x = filled(Net()), images().requires_grad_(requires)
    net.body[1].input = "mine"  # type: ignore[assignment]  # captum has an attribute of this name
    net.body[4].register_forward_hook(lambda *given: None)
    before = snapshot(net, x)
    with torch.no_grad():
        e = ran(method, net, x)
    assert snapshot(net, x) == before
    assert not e.matrix.requires_grad
    with torch.inference_mode():
        ran(method, net, x.clone())
    assert snapshot(net, x) == before


class Writes(nn.Module):
    """Writes into its input, and fails when it is called for the ``fails``-th time."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__()
        # An iterator, as what the model counts itself is put back after every pass.
        self.inner, self.calls, self.fails = Net(), itertools.count(1), fails

    def forward(self, x: Tensor) -> Tensor:
        call = next(self.calls)
        out = self.inner(x.mul_(2))
        if call == self.fails:
            raise RuntimeError("once more is one too many\nand so on")
        return out


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_writes_into_its_input(method: str) -> None:
    x, net = images(), filled(Writes())
    before = x.clone()
    e = ran(method, net, x)
    assert torch.equal(x, before)
    torch.testing.assert_close(e.output, net.inner(2 * before)[:, 1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_changed_by_an_error_either(method: str) -> None:
    fails = 3 if method == "grad-cam" else 2  # once to settle the target, once to find the layer
    net, x = filled(Writes(fails)), images()
    before = snapshot(net, x)
    with pytest.raises(ModelError) as told:
        ran(method, net, x)
    assert snapshot(net, x) == before
    reason = f"captum cannot explain this model by {method!r}: once more is one too many."
    assert str(told.value) == f"{reason} Use another method."


def test_deeplift_says_why_captum_cannot() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.a, self.b = nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.act(self.a(self.act(x))))

    net, x = filled(Twice()), torch.ones(1, 4).double()
    before = snapshot(net, x)
    with pytest.raises(ModelError, match=r"by 'deeplift': A Module ReLU\(\) was detected"):
        ran("deeplift", net, x)
    assert snapshot(net, x) == before
    with pytest.raises(ModelError, match="replaces the derivatives of its modules"):
        ran("deeplift", lambda x: net(x), x)


# --- what is told --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_without_captum_the_extra_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(MissingExtra) as told:
        ran(method, filled(Net()), images())
    assert str(told.value) == (
        f"the method '{method}' needs the package 'captum', which is not installed. "
        "Run: pip install 'omenn[peers]'"
    )
    assert omenn.methods()[method].extra == "peers"


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_explained_is_told(method: str) -> None:
    ids = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2)).eval()
    told = f"method '{method}' explains floating-point inputs, but integer ids are given."
    if method != "integrated-gradients":  # along the rows of their table
        with pytest.raises(InputError, match=told):
            ran(method, ids, torch.tensor([[1, 2]]))
    with pytest.raises(TargetError, match="1 numbers for 3 samples, and method '" + method):
        ran(method, filled(Net()), images(), lambda out: out.sum())
    with pytest.raises(TargetError, match="target 9 is out of range"):
        ran(method, filled(Net()), images(), 9)
    with pytest.raises(InputError, match=r"the model cannot take an input of the shape \(3, 8\)"):
        ran(method, filled(Net()), images()[:, 0, 0])
    with pytest.raises(InputError, match="NaN or infinite; an explanation would be"):
        ran(method, filled(Net()), images() * torch.nan)
    with pytest.raises(ModelError, match="training mode"):
        ran(method, filled(Net()).train(), images())
    with pytest.raises(InputError, match="the model's output is not finite"):
        ran(method, Wrapped(filled(Net()), lambda out: out * torch.inf).eval(), images())
    if method != "grad-cam":
        with pytest.raises(InputError, match=r"same first dimension, the batch, but got \(3, 2\)"):
            ran(method, filled(Pair()), {"b": torch.ones(3, 2), "a": torch.ones(1, 3)})
    else:
        with pytest.raises(InputError, match="'grad-cam' explains one input, but 2 floating-point"):
            ran(method, filled(Pair()), pair())


# Method, its options, the last of which is at fault, how that is quoted, and what was expected.
BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("integrated-gradients", {"steps": 0}, "0", "an integer of at least 1"),
    ("integrated-gradients", {"chunk": 1.5}, "1.5", "an integer of at least 1"),
    ("integrated-gradients", {"baseline": torch.zeros(2)}, "tensor([0., 0.])", "a number, or"),
    ("deeplift", {"baseline": "black"}, "'black'", "a number, or"),
    ("deeplift", {"baseline": (0, 0)}, "2 parts", "1 parts"),
    ("smoothgrad", {"noise": -0.1}, "-0.1", "a finite number of at least 0"),
    ("smoothgrad", {"seed": None}, "None", "an integer from 0 to"),
    ("shap-gradient", {"steps": True}, "True", "an integer of at least 1"),
    ("shap-gradient", {"noise": "much"}, "'much'", "a finite number of at least 0"),
    ("occlusion", {"window": 9}, "9", "integers of at least 1 and at most 8 × 8"),
    ("occlusion", {"window": (2, 2, 2)}, "(2, 2, 2)", "integers of at least 1"),
    ("occlusion", {"window": 0.5}, "0.5", "integers of at least 1"),
    ("occlusion", {"stride": 1.0}, "1.0", "integers of at least 1"),
    ("occlusion", {"window": 4, "stride": 5}, "5", "integers of at least 1 and at most 4 × 4"),
    ("grad-cam", {"layer": "bodi"}, "'bodi'", ""),
    ("grad-cam", {"layer": "head"}, "'head'", ""),
    ("saliency", {"steps": 3}, "", "absolute, output, channel_dim"),
]


@pytest.mark.parametrize(("method", "options", "got", "expected"), BAD)
def test_bad_options_are_told(method: str, options: dict, got: str, expected: str) -> None:
    kind = ModelError if method == "grad-cam" else InputError
    with pytest.raises(kind) as caught:
        omenn.explain(filled(Net()), images(), 1, method=method, **options)
    error = caught.value
    assert (error.argument, error.got) == ([*options][-1], got)
    assert error.expected.startswith(expected)
    assert error.argument in str(error)


def test_a_layer_that_is_not_there_is_told_with_the_nearest() -> None:
    with pytest.raises(ModelError) as caught:
        omenn.explain(filled(Net()), images(), 1, method="grad-cam", layer="bodi")
    assert caught.value.remedy.startswith("did you mean 'body'")


def test_grad_cam_needs_a_layer_that_is_called_once_and_is_on_the_input() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.conv(x)).mean((2, 3)))

    with pytest.raises(ModelError, match="layer='conv' is called 2 times, so Grad-CAM has no map"):
        ran("grad-cam", filled(Shared()), images(), layer="conv")
    with pytest.raises(ModelError, match="no layer was found whose output lies on the input"):
        ran("grad-cam", filled(Shared()), images())
    net = filled(Net())
    with pytest.raises(ModelError, match=r"model must be a torch\.nn\.Module"):
        ran("grad-cam", lambda x: net(x), images())
