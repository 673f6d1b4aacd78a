"""Full gradients, of the ordinary network (FullGrad) and of the frozen one (LibraGrad)."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets import convnet, draw, seeded
from omenn.attribution.fullgrad import Layers, LayersRun, OrdinaryLayers, OrdinaryLayersRun
from omenn.engine.run import FrozenRun

METHODS = ["fullgrad", "libragrad"]


def clipped() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.Hardtanh(-0.5, 0.5, inplace=True),
        nn.Conv2d(6, 5, 2, groups=1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(20, 4),
    )  # fmt: skip


class Transformer(nn.Module):
    """Patches with a class token and positions, one block, one head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.token, self.position = (nn.Parameter(torch.ones(1, n, 8)) for n in (1, 17))
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        normed = self.norm(x)
        q, k, v = self.qkv(normed).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        x = x + F.gelu(self.mlp(self.norm(x)))
        return self.head(x[:, 0])


def total(e: Any) -> Tensor:
    return e.matrix.flatten(1).sum(1)


# --- the unprocessed form ------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [convnet, clipped])
def test_the_terms_of_a_piecewise_linear_network_sum_to_the_output(method: str, build: Any) -> None:
    net, x = seeded(build()), draw(2, 3, 8, 8)
    e = omenn.explain(net, x, 2, method=method)
    torch.testing.assert_close(total(e), net(x)[:, 2].detach(), rtol=1e-9, atol=1e-9)
    assert e.exact
    assert e.bias.abs().sum() > 0


@hypothesis.settings(max_examples=15)
@hypothesis.given(
    size=st.integers(5, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_completeness_for_any_shape(size: int, kernel: int, stride: int, batch: int, seed: int):
    net = nn.Sequential(
        nn.Conv2d(2, 3, kernel, stride), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2),
        nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    net, x = seeded(net, seed=seed), draw(batch, 2, size, size + 1)
    e = omenn.explain(net, x, 1, method="fullgrad")
    torch.testing.assert_close(total(e), net(x)[:, 1].detach(), rtol=1e-9, atol=1e-9)
    shown = omenn.explain(net, x, 1, method="fullgrad", psi="published").matrix
    assert shown.shape == (batch, size, size + 1)
    assert bool((shown >= 0).all())


def test_only_the_frozen_network_is_complete_on_a_transformer() -> None:
    net, x = seeded(Transformer()), draw(2, 3, 8, 8)
    f = net(x)[:, 1].detach()
    libra = omenn.explain(net, x, 1, method="libragrad")
    torch.testing.assert_close(total(libra), f, rtol=1e-9, atol=1e-9)
    full = omenn.explain(net, x, 1, method="fullgrad")
    assert libra.exact
    assert not full.exact
    assert "approximate" in repr(full)
    torch.testing.assert_close(full.residual, f - total(full), rtol=1e-9, atol=1e-9)
    assert full.residual.abs().max() > 1e-2


def test_the_share_of_each_layer_is_its_bias_times_the_gradient_there() -> None:
    net, x = seeded(convnet()), draw(2, 3, 8, 8)
    e = omenn.explain(net, x, 2, method="fullgrad")
    terms = hooked(net, x, 2)
    assert set(e.sources) == {"0", "1", "4", "8"}
    for name, values in terms.items():
        torch.testing.assert_close(e.sources[name], values.flatten(1).sum(1))


@pytest.mark.parametrize("build", [convnet, Transformer])
def test_unprocessed_libragrad_is_omenn(build: Any) -> None:
    net, x = seeded(build()), draw(2, 3, 8, 8)
    found, expected = omenn.explain(net, x, 2, method="libragrad"), omenn.explain(net, x, 2)
    assert torch.equal(found.matrix, expected.matrix)
    assert torch.equal(found.bias, expected.bias)


@pytest.mark.parametrize("build", [convnet, Transformer])
def test_the_maps_of_the_layers_add_up_to_the_bias_of_omenn(build: Any) -> None:
    net, x = seeded(build()), draw(2, 3, 8, 8)
    expected = omenn.explain(net, x, 2)
    run = LayersRun(net, x, None, "spatial", None, {}, Layers)
    f, index = run.target(2)
    g = run.pull_back(f, retain=True)
    e = run.wrap(f, index, g)
    torch.testing.assert_close(e.bias, expected.bias, rtol=1e-10, atol=1e-12)
    sums: dict[str, Tensor] = {}
    for name, _, values in run.layers(g):
        here = values.flatten(1).sum(1) if len(values) == 2 else values.sum().expand(2) / 2
        sums[name] = sums.get(name, 0) + here
    assert set(sums) == set(expected.sources)
    for name, values in sums.items():
        torch.testing.assert_close(values, expected.sources[name], rtol=1e-9, atol=1e-11)


# --- the published form --------------------------------------------------------------------------


def hooked(net: nn.Sequential, x: Tensor, target: int) -> dict[str, Tensor]:
    """b ⊙ ∇_b f of every layer with a constant, by gradients at the outputs of the modules."""
    outs, y = {}, x
    for name, module in net.named_children():
        y = module(y)
        outs[name] = y
    found = torch.autograd.grad(y[:, target].sum(), list(outs.values()))
    gradients = dict(zip(outs, found, strict=True))
    terms = {}
    for name, module in net.named_children():
        bias = getattr(module, "bias", None)
        if isinstance(module, nn.BatchNorm2d):
            bias = bias - module.running_mean * module.weight / (module.running_var + 1e-5).sqrt()
        if bias is not None:
            column = bias.reshape(-1, *[1] * (outs[name].ndim - 2))
            terms[name] = (gradients[name] * column).detach()
    return terms


def psi(term: Tensor, size: tuple[int, ...]) -> Tensor:
    """Absolute, to [0, 1] for each sample, upsampled, summed over channels."""
    flat = term.abs().flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    unit = ((flat - low) / (high - low)).reshape(term.shape)
    return F.interpolate(unit, size, mode="bilinear", align_corners=True).sum(1)


@pytest.mark.parametrize("method", METHODS)
def test_published_is_the_published_form(method: str) -> None:
    net, x = seeded(convnet()), draw(2, 3, 8, 8)
    a, b = (
        omenn.explain(net, x, 2, method=method, **form)
        for form in ({"published": True}, {"psi": "published"})
    )
    assert torch.equal(a.matrix, b.matrix)


@pytest.mark.parametrize("method", METHODS)  # on this network they are the same
def test_the_published_form_of_a_convolutional_network(method: str) -> None:
    net, x = seeded(convnet()), draw(2, 3, 8, 8)
    e = omenn.explain(net, x, 2, method=method, psi="published")
    terms = hooked(net, x, 2)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[:, 2].sum(), leaf)
    bias = sum(psi(terms[name], (8, 8)) for name in ("0", "1", "4"))  # "8" has no place
    torch.testing.assert_close(e.bias, bias, rtol=1e-9, atol=1e-9)
    expected = psi(gradient * x, (8, 8)) + bias
    torch.testing.assert_close(e.matrix, expected, rtol=1e-9, atol=1e-9)
    assert e.promise == "none"
    assert e.processing == ("ψ: absolute, rescaled, upsampled; lossy",)
    torch.testing.assert_close(e.residual, e.output - total(e))
    assert "no sum promised" in repr(e)


class Tokens(nn.Module):
    """Patches, a layer over each token, and their mean."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.patches, self.layer = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 4)
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        maps = self.patches(x.mT if self.transposed else x)
        return F.relu(self.layer(F.relu(maps).flatten(2).mT)).mean(1)


def of_tokens(net: Tokens, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
    maps = net.patches(x)
    layer = net.layer(F.relu(maps).flatten(2).mT)
    at_maps, at_layer = torch.autograd.grad(F.relu(layer).mean(1)[:, target].sum(), [maps, layer])
    first = at_maps * net.patches.bias.reshape(-1, 1, 1)
    second = (at_layer * net.layer.bias).mT.reshape(len(x), 4, *maps.shape[2:])
    return first.detach(), second.detach()


def test_tokens_are_interpolated_on_the_grid_of_their_patches() -> None:
    net, x = seeded(Tokens()), draw(2, 3, 8, 6)
    e = omenn.explain(net, x, 1, method="fullgrad", psi="published")
    expected = sum(psi(term, (8, 6)) for term in of_tokens(net, x, 1))
    torch.testing.assert_close(e.bias, expected, rtol=1e-9, atol=1e-9)


def test_what_lies_across_the_input_is_not_taken_for_upright() -> None:
    net, x = seeded(Tokens(transposed=True)), draw(2, 3, 8, 6)
    e = omenn.explain(net, x, 1, method="fullgrad", psi="published")
    cells = sum(psi(term, (3, 4)) for term in of_tokens(net, x.mT, 1))
    expected = cells.mT.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(e.bias, expected, rtol=1e-9, atol=1e-9)


def test_the_class_token_is_left_out() -> None:
    net, x = seeded(Transformer()), draw(2, 3, 8, 8)
    before = omenn.explain(net, x, 1, method="libragrad", psi="published")
    with torch.no_grad():
        net.head.bias.add_(3)  # behind the class token
    after = omenn.explain(net, x, 1, method="libragrad", psi="published")
    assert torch.equal(before.matrix, after.matrix)
    assert before.matrix.shape == (2, 8, 8)
    assert before.matrix.amax() > before.matrix.amin() >= 0


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(self.table(ids)) + scale[:, None]).mean(1))


@pytest.mark.parametrize("method", METHODS)
def test_ids_and_several_inputs(method: str) -> None:
    net = seeded(Words())
    given = {"ids": torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 1, 2]]), "scale": draw(2, 4)}
    f = net(**given)[:, 0].detach()
    e = omenn.explain(net, given, 0, method=method)
    summed = e.matrix["ids"].sum(1) + e.matrix["scale"].sum(1)
    torch.testing.assert_close(summed, f, rtol=1e-9, atol=1e-9)
    shown = omenn.explain(net, given, 0, method=method, psi="published")
    assert shown.matrix["ids"].shape == (2, 5)
    assert shown.matrix["scale"].shape == (2, 4)
    assert bool((shown.matrix["ids"] >= 0).all())
    summed = shown.matrix["ids"].sum(1) + shown.matrix["scale"].sum(1)
    torch.testing.assert_close(shown.residual, f - summed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_later_module(method: str) -> None:
    net, x = seeded(convnet()), draw(2, 3, 8, 8)
    e = omenn.explain(net, x, 2, method=method, at="3")
    assert e.exact
    assert e.matrix.shape == (2, 8, 8)
    there = omenn.explain(net, x, 2, method=method, at="3", resample="none", psi="published")
    tail = omenn.explain(net[4:].eval(), net[:4](x).detach(), 2, method=method, psi="published")
    torch.testing.assert_close(there.matrix, tail.matrix, rtol=1e-9, atol=1e-9)
    brought = omenn.explain(net, x, 2, method=method, at="3", psi="published")
    assert brought.matrix.shape == (2, 8, 8)


# --- what holds for every option -----------------------------------------------------------------


@pytest.mark.parametrize("form", ["none", "published"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [convnet, Transformer])
def test_neighbours_in_the_batch_and_precision_change_nothing(build, method, form) -> None:
    net, x = seeded(build()), draw(3, 3, 8, 8)
    options = {"method": method, "psi": form}
    together = omenn.explain(net, x, 1, **options).matrix
    alone = torch.cat([omenn.explain(net, row[None], 1, **options).matrix for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-10)
    single = omenn.explain(net.float(), x.float(), 1, **options).matrix
    assert (single.double() - together).abs().amax() <= 1e-3 * together.abs().amax()


@pytest.mark.parametrize("method", METHODS)
def test_options_that_are_not_known_are_refused(method: str) -> None:
    net, x = convnet().eval(), torch.rand(1, 3, 8, 8)
    said = r"psi='abs' is not known\. Choose one of: none, published\."
    with pytest.raises(omenn.InputError, match=said):
        omenn.explain(net, x, 0, method=method, psi="abs")
    with pytest.raises(omenn.InputError, match=r"resample='cubic' is not known\. Choose one of: "):
        omenn.explain(net, x, 0, method=method, psi="published", resample="cubic")
    with pytest.raises(omenn.InputError, match=f"method '{method}' has no option 'steps'"):
        omenn.explain(net, x, 0, method=method, steps=3)


def test_an_unknown_product_is_refused() -> None:
    with pytest.raises(omenn.InputError, match=r"products='both' is not known\. Choose one of"):
        omenn.explain(
            nn.Linear(2, 2).eval(), torch.rand(1, 2), 0, method="libragrad", products="both"
        )


@pytest.mark.parametrize("kind", [(LayersRun, Layers), (OrdinaryLayersRun, OrdinaryLayers)])
def test_ones_of_every_element_leave_the_gradient_as_it_is(kind: Any) -> None:
    net, x = seeded(convnet()), draw(2, 3, 8, 8)
    run, tracer = kind
    options = (None, "spatial", None, {}) if run is LayersRun else ()
    if run is LayersRun:
        found = run(net, x, *options, tracer)
    else:
        found = run(net, x, bias="spatial", tracer=tracer)
    plain = FrozenRun(net, x, None, "none", None, {})
    first, second = (r.pull_back(r.target(1)[0]).inputs[0] for r in (found, plain))
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)
