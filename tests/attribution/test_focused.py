"""omenn-focused against a slow form of its formula; that no mass is lost; what is refused."""

from __future__ import annotations

import math
import re
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import omenn
from nets import draw, seeded
from omenn.attribution.focused import FLOOR, moved_within
from omenn.attribution.perturbations import Moves
from omenn.engine.run import FrozenRun


def convnet() -> Any:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(48, 3),
    )  # fmt: skip
    return seeded(net)


X = draw(2, 2, 6, 8)


def explained(x: Tensor = X, target: Any = 1, **options: Any) -> omenn.Explanation:
    return omenn.explain(convnet(), x, target, method="omenn-focused", **options)


def weights(length: int, sigma: float) -> list[list[float]]:
    """The Gaussian on a line that is reflected at its ends, entry by entry."""
    reach = max(1, math.ceil(min(4 * sigma, 8 * length)))
    taps = {o: math.exp(-0.5 * (o / sigma) ** 2) for o in range(-reach, reach + 1)}
    rows = []
    for i in range(length):
        row = [0.0] * length
        for offset, tap in taps.items():
            place = (i + offset) % (2 * length)
            row[min(place, 2 * length - 1 - place)] += tap / sum(taps.values())
        rows.append(row)
    return rows


def slow_spread(c: Tensor, sigma: float) -> Tensor:
    height, width = c.shape
    down, across = (weights(n, sigma) for n in (height, width))
    out = torch.zeros_like(c)
    for i in range(height):
        for j in range(width):
            for k in range(height):
                for m in range(width):
                    out[i, j] += down[i][k] * across[j][m] * c[k, m]
    return out


def slow_moved(c: Tensor, sigma: float, a: Tensor) -> Tensor:
    """Every pixel gives its mass away by hand."""
    height, width = c.shape
    down, across = (weights(n, sigma) for n in (height, width))
    out = torch.zeros_like(c)
    for k in range(height):
        for m in range(width):
            row = torch.tensor(down[k], dtype=c.dtype)[:, None]
            shares = row * torch.tensor(across[m], dtype=c.dtype)[None] * a
            out += c[k, m] * shares / shares.sum()
    return out


def slow_way(net: Any, plain: Any, o: dict[str, Any]) -> Tensor:
    """The averaged maps, picture by picture and from each s by a sum of its own."""
    n, bias = o["path"], o.get("bias", "spatial")
    least = o["start"] or 0.0
    alphas = [max(least + (1 - least) * k / n, 0.001) for k in range(n + 1)]
    at = [omenn.explain(net, alpha * X, 1, bias=bias) for alpha in alphas]
    maps = []
    for b in range(len(X)):
        chosen = None
        for k in reversed(range(n + 1)):
            weight = alphas[k] * at[k].weight[b]
            for j in range(k, n):
                step = alphas[j + 1] - alphas[j]
                weight = weight + step * (at[j].weight[b] + at[j + 1].weight[b]) / 2
            c = (X[b] * weight).sum(0) + at[k].bias[b]
            missing = plain.output[b] - c.sum()
            if k < n and o["start"] is None and missing.abs() > o["tolerance"] * c.abs().sum():
                break
            chosen = c + missing / c.numel()
        maps.append(chosen)
    return torch.stack(maps)


def even(values: Tensor) -> Tensor:
    positive = values.clamp(min=0)
    mean = positive.mean()
    return (positive / mean if mean > 0 else positive) + FLOOR


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 0},
        {"steps": 0, "path": 0},
        {"steps": 2, "path": 3, "start": 0},
        {"steps": 2, "path": 4, "start": 0.3},
        {"steps": 2, "path": 4, "tolerance": 0},
        {"steps": 2, "path": 3, "tolerance": 1},
        {"steps": 3, "noise": 0.2, "seed": 5, "wide": 0},
        {"steps": 2, "power": 0},
        {"steps": 2, "power": 2, "scale": 0.3, "wide": 0.5, "bias": "uniform"},
        {"scale": 0},
        {"scale": 0, "wide": 0, "start": 0},
        {"scale": 0, "path": 0},
        {"steps": 3, "rotation": 20, "translation": 0.1, "flip": True},
    ],
)
def test_against_the_formula(options: dict[str, Any]) -> None:
    net = convnet()
    e = explained(**options)
    o = {
        "path": 20,
        "start": None,
        "tolerance": 0.05,
        "scale": 0.03,
        "steps": 10,
        "noise": 0.3,
        "power": 1,
        "wide": 0.12,
        "seed": 0,
    } | options
    plain = omenn.explain(net, X, 1, bias=o.get("bias", "spatial"))
    named = {"rotation": 0.0, "translation": 0.0, "scaling": 0.0, "flip": False}
    moves = Moves(
        o["steps"], o["seed"], o["noise"], *(o.get(name, value) for name, value in named.items())
    )  # type: ignore[arg-type]
    mean = torch.zeros_like(X)
    inputs = FrozenRun(net, X, None, "none", None, {}).inputs
    for step in moves.of(inputs):
        leaf = X.clone().requires_grad_()
        away = step(0, leaf)
        w = omenn.explain(net, away.detach(), 1).weight
        (back,) = torch.autograd.grad(away, leaf, w)
        mean += back / o["steps"]
    mean = mean if o["steps"] else plain.weight
    maps = slow_way(net, plain, o) if o["path"] else plain.matrix
    for k in range(2):
        c, lead = maps[k], (X[k] * mean[k]).sum(0)
        worth = even((X[k] * plain.weight[k]).abs().sum(0))
        z = c
        if o["scale"]:
            sign = slow_spread(c, o["scale"] * 6).sign()
            z = slow_moved(c, o["scale"] * 6, even(sign * lead) * worth ** o["power"])
        if o["wide"]:
            sign = slow_spread(z, o["wide"] * 6).sign()
            z = slow_moved(z, o["wide"] * 6, even(sign * z))
        torch.testing.assert_close(e.matrix[k], z, rtol=1e-9, atol=1e-10)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 10_000),
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    sigma=st.floats(0.05, 20),
    power=st.integers(0, 12),
)
def test_no_mass_is_lost(seed: int, sides: tuple[int, int], sigma: float, power: int) -> None:
    c, a = draw(2, *sides, seed=seed), draw(2, *sides, seed=seed + 1).abs() ** power + 1e-3
    z = moved_within(c, sigma, lambda sign: a)
    kept = (z.sum((1, 2)) - c.sum((1, 2))).abs()
    assert bool((kept <= 1e-9 * (1 + c.abs().sum((1, 2)))).all())


def test_mass_stays_in_its_neighbourhood() -> None:
    c = torch.zeros(1, 8, 40, dtype=torch.float64)
    c[0, 4, 5], c[0, 4, 34] = 3.0, -1.0
    z = moved_within(c, 1.5, lambda sign: torch.rand(1, 8, 40, dtype=torch.float64) + 0.1)
    torch.testing.assert_close(z[..., :20].sum(), c.new_tensor(3.0))
    torch.testing.assert_close(z[..., 20:].sum(), c.new_tensor(-1.0))


def test_the_second_width_sets_off_what_speaks_against() -> None:
    near, far = explained(wide=0), explained(wide=0.5)
    assert bool((far.matrix.abs().sum((1, 2)) < near.matrix.abs().sum((1, 2))).all())
    assert near.exact
    assert far.exact


def test_it_is_exact_and_says_what_was_done() -> None:
    e = explained()
    assert e.exact
    assert e.promise == "exact"
    assert e.method == "omenn-focused"
    moved = "mass moved within 0.18 pixels, mass gathered within 0.72 pixels"
    assert len(e.processing) == 1
    assert re.fullmatch(
        rf"averaged from [\d.]+( to [\d.]+)? of the way to the image, {moved}", e.processing[0]
    )
    assert set(e.sources) == {"constants", "evenly"}
    from_half = explained(start=0.5).processing[0]
    assert from_half == f"averaged from 0.5 of the way to the image, {moved}"
    torch.testing.assert_close(sum(e.sources.values()), e.bias.sum((1, 2)))
    torch.testing.assert_close(e.matrix.sum((1, 2)), e.output)
    torch.testing.assert_close(e.residual, (e.output - e.matrix.sum((1, 2))).double())
    torch.testing.assert_close((e.contribution.sum(1) + e.bias).sum((1, 2)), e.output)
    plain = omenn.explain(convnet(), X, 1)
    for path, start in ((0, 0.5), (2, 1)):
        e = explained(path=path, start=start)
        torch.testing.assert_close(e.contribution, plain.contribution)
        torch.testing.assert_close(e.bias, plain.bias)


def relu_net() -> Any:
    return seeded(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)))


def test_from_zero_it_is_integrated_gradients_and_the_constants_there() -> None:
    """On a network that is piecewise linear, where its slope is its derivative."""
    net, n = relu_net(), 40
    e = omenn.explain(net, X, 1, method="omenn-focused", path=n, start=0, scale=0, wide=0)
    total = torch.zeros_like(X)
    for k in range(n + 1):
        leaf = (X * k / n).requires_grad_()
        (slope,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
        total += slope * (0.5 if k in (0, n) else 1) / n
    torch.testing.assert_close(e.contribution, X * total)
    black = omenn.explain(net, torch.zeros_like(X), 1)
    torch.testing.assert_close(black.bias.sum((1, 2)), net(torch.zeros_like(X))[:, 1])
    torch.testing.assert_close(e.sources["constants"], black.output)
    rest = e.bias - black.bias
    torch.testing.assert_close(rest, rest.mean((1, 2), keepdim=True).expand_as(rest))


@pytest.mark.parametrize("start", [0, 0.3, 0.7])
def test_what_is_missing_on_a_piecewise_linear_network_is_the_quadrature(start: float) -> None:
    def missing(n: int) -> Tensor:
        options = {"method": "omenn-focused", "path": n, "start": start, "scale": 0, "wide": 0}
        return omenn.explain(relu_net(), X, 1, **options).sources["evenly"].abs()  # type: ignore[arg-type]

    fine = missing(200)
    assert bool((fine < 2e-3).all())
    assert bool((fine < missing(3)).all())


def test_without_additive_terms_nothing_is_missing() -> None:
    """W(0) of a ReLU that is given zero is zero, and not what it is beside it."""
    layers = (nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3, bias=False))
    e = omenn.explain(seeded(nn.Sequential(*layers)), X, 1, method="omenn-focused")
    assert bool((e.sources["evenly"].abs() < 1e-12).all())
    assert e.processing[0].startswith("averaged from 0.001 of the way to the image, ")
    assert e.located == pytest.approx(1)


class Standardised(nn.Module):
    """Which has no output for a picture of one colour."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convnet()

    def forward(self, x: Tensor) -> Tensor:
        spread = x.std((1, 2, 3), keepdim=True)
        return self.net((x - 0.3) / torch.where(spread < 0.5, spread - spread, spread))


def test_it_does_not_start_where_the_model_has_no_output() -> None:
    net = Standardised().eval()
    e = omenn.explain(net, X, 1, method="omenn-focused", tolerance=1)
    assert e.exact
    assert 0.3 < float(e.processing[0].split()[2]) < 1
    with pytest.raises(omenn.InputError, match="the model's output is not finite"):
        omenn.explain(net, X, 1, method="omenn-focused", start=0)


def test_what_has_no_place_is_counted() -> None:
    e = explained(start=0, path=2)
    missing = e.sources["evenly"].abs().sum()
    even = e.sources["evenly"][:, None, None] / 48
    constants = (e.bias - even).abs().sum()
    share = float(missing / (missing + constants))
    assert share > 0.01
    assert e.reasons["uniform"] == pytest.approx(share)
    at_zero = omenn.explain(convnet(), 0.001 * X, 1)
    assert e.located == pytest.approx((1 - share) * at_zero.located)
    assert e.located + sum(e.reasons.values()) == pytest.approx(1)
    plain = omenn.explain(convnet(), X, 1)
    assert explained(path=0).located == explained(start=1).located == plain.located


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_types_are_those_of_omenn(kind: torch.dtype) -> None:
    net, x = convnet().to(kind), X.to(kind)
    plain = omenn.explain(net, x, 1)
    e = omenn.explain(net, x, 1, method="omenn-focused")
    assert e.exact
    for name in ("matrix", "weight", "contribution", "bias"):
        assert getattr(e, name).dtype == getattr(plain, name).dtype


def test_a_start_at_the_image_runs_nothing_on_the_way() -> None:
    calls = []
    net = convnet()
    net.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for options in ({"start": 1}, {"path": 0}, {"start": 0}, {"start": 0, "steps": 0}):
        calls.clear()
        omenn.explain(net, X, 1, method="omenn-focused", **options)
        counts.append(len(calls))
    # One of them is the ordinary model's, for comparison.
    assert counts == [13, 13, 33, 23]


def test_it_starts_where_little_is_missing_from_there_on() -> None:
    def share(e: Any) -> Tensor:
        whole = e.contribution.sum(1) + e.bias
        return e.sources["evenly"].abs() / (
            whole - e.sources["evenly"][:, None, None] / 48
        ).abs().sum((1, 2))

    for tolerance in (0.0, 0.01, 0.05, 0.3):
        e = explained(tolerance=tolerance, scale=0, wide=0)
        assert bool((share(e) <= tolerance + 1e-12).all())
    whole = explained(tolerance=1, scale=0, wide=0)
    torch.testing.assert_close(whole.matrix, explained(start=0, scale=0, wide=0).matrix)
    plain = omenn.explain(convnet(), X, 1)
    torch.testing.assert_close(explained(tolerance=0, scale=0, wide=0).matrix, plain.matrix)


@pytest.mark.parametrize("against", ["rest", "runner-up"])
def test_what_a_class_is_contrasted_with(against: str) -> None:
    net = convnet()
    own = omenn.explain(net, X, method="omenn-focused", against=against)
    best = net(X).argmax(1)
    other = explained(target=omenn.Contrast(best, against))  # type: ignore[arg-type]
    torch.testing.assert_close(own.matrix, other.matrix)
    torch.testing.assert_close(own.matrix.sum((1, 2)), own.output)
    logits = net(X).sort(1).values
    less = logits[:, -2] if against == "runner-up" else logits[:, :-1].mean(1)
    torch.testing.assert_close(own.output, logits[:, -1] - less)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = convnet()

    def forward(self, x: Tensor, k: Tensor | None = None) -> Tensor:
        return self.net(x)


def test_images_may_come_by_name_and_beside_what_is_not_explained() -> None:
    net, plain = Named().eval(), explained()
    k = torch.tensor([1, 2])
    for given in ((X,), (X, k)):
        e = omenn.explain(net, given, 1, method="omenn-focused")
        assert len(e.matrix) == len(given)
        torch.testing.assert_close(e.matrix[0], plain.matrix)
    for named in ({"x": X}, {"x": X, "k": k}):
        e = omenn.explain(net, named, 1, method="omenn-focused")
        assert e.exact
        for name in ("matrix", "bias", "weight", "contribution"):
            torch.testing.assert_close(getattr(e, name)["x"], getattr(plain, name))


def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    torch.testing.assert_close(explained(X[1:]).matrix[0], explained(X).matrix[1])


def test_a_black_picture_has_a_map() -> None:
    e = explained(torch.zeros(1, 2, 6, 8, dtype=torch.float64))
    assert e.exact
    assert bool(torch.isfinite(e.matrix).all())


def test_the_random_state_and_the_model_are_left_alone() -> None:
    net, before = convnet(), torch.random.get_rng_state()
    state = {name: t.clone() for name, t in net.state_dict().items()}
    first = omenn.explain(net, X, 1, method="omenn-focused", seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())
    again = omenn.explain(net, X, 1, method="omenn-focused", seed=3)
    other = omenn.explain(net, X, 1, method="omenn-focused", seed=4)
    assert torch.equal(first.matrix, again.matrix)
    assert not torch.equal(first.matrix, other.matrix)


REFUSED: dict[str, list[Any]] = {
    "steps": [-1, True],
    "noise": [2],
    "scale": [1.5, True],
    "wide": [-0.1, float("nan")],
    "path": [-2],
    "start": [1.2, "auto"],
    "tolerance": [-1, None],
    "power": [9, "2"],
    "seed": [-1],
    "bias": ["separate"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in REFUSED.items() for v in vs])
def test_options_out_of_their_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(omenn.InputError, match=f"^{name}\\b"):
        explained(**{name: value})


def test_there_must_be_something_to_do() -> None:
    with pytest.raises(omenn.InputError, match=r"^scale=0, wide=0 and path=0"):
        explained(scale=0, wide=0, path=0)


def test_a_contrast_that_is_not_known_is_refused() -> None:
    with pytest.raises(omenn.TargetError):
        explained(against="best")


@pytest.mark.parametrize("target", [omenn.Contrast(0, 1), lambda out: out[:, 0]])
def test_a_contrast_of_a_contrast_is_refused(target: Any) -> None:
    with pytest.raises(omenn.InputError, match=r"^against= is for a class"):
        explained(target=target, against="rest")


class Mean(nn.Module):
    """One answer for a batch, or for each of two flags."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convnet()

    def forward(self, flag: Tensor, x: Tensor) -> Tensor:
        return self.net(x).mean(0, keepdim=True) + flag[:, None]


@pytest.mark.parametrize(
    ("inputs", "target"),
    [
        (X, lambda out: out[:, 1].sum()),
        (X[:1], lambda out: out[0, 1]),
        ((torch.tensor([1]), X), 1),
    ],
)
def test_a_number_that_is_not_of_one_image_is_refused(inputs: Any, target: Any) -> None:
    net = Mean().eval() if isinstance(inputs, tuple) else convnet()
    said = r"is for a number of each image, but the target has \d for "
    with pytest.raises(omenn.InputError, match=said):
        omenn.explain(net, inputs, target, method="omenn-focused")


def test_answers_that_each_depend_on_all_images_are_refused() -> None:
    flags, images = torch.tensor([1, 0]), draw(4, 2, 6, 8)
    with pytest.raises(omenn.TargetError):
        omenn.explain(Mean().eval(), (flags, images), 1, method="omenn-focused")


def test_what_is_no_image_is_refused() -> None:
    said = (
        r"is for one batch of images \(B, C, H, W\), but \(2, 4\) is explained\. Use method 'omenn'"
    )
    with pytest.raises(omenn.InputError, match=said):
        omenn.explain(nn.Linear(4, 3).eval(), torch.rand(2, 4), 0, method="omenn-focused")
