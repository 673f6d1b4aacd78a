"""DAVE against a slow form of its formula: transformations as matrices, means by hand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets import draw, seeded
from omenn.attribution.dave import bilateral
from omenn.attribution.perturbations import Affine, Moves
from omenn.engine.run import FrozenRun

STILL: dict[str, Any] = {
    "noise": 0,
    "rotation": 0,
    "translation": 0,
    "scaling": 0,
    "flip": False,
}


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 2), nn.GELU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(2, 8, 2, 2), nn.LayerNorm(8)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).mT
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return self.head((x + F.scaled_dot_product_attention(q, k, v)).mean(1))


BUILDS = [convnet, Transformer]


def explained(net: Any, x: Any, target: Any = 1, **options: Any) -> Any:
    return omenn.explain(net, x, target, method="dave", **options)


# --- the formula ---------------------------------------------------------------------------------


@pytest.mark.parametrize("build", BUILDS)
def test_one_step_that_moves_nothing_is_the_frozen_gradient_times_the_input(build: Any) -> None:
    net, x = seeded(build()), draw(2, 2, 6, 6)
    e, expected = explained(net, x, steps=1, **STILL), omenn.explain(net, x, 1)
    torch.testing.assert_close(e.weight, expected.weight, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(e.contribution, expected.contribution, rtol=1e-12, atol=1e-14)
    apart = omenn.explain(net, x, 1, bias="separate")
    torch.testing.assert_close(e.matrix, apart.matrix, rtol=1e-12, atol=1e-14)
    assert e.bias.abs().sum() == 0
    assert e.promise == "none"
    assert torch.equal(e.output, omenn.explain(net, x, 1).output)


def matrix_of(move: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map of one image."""
    n = math.prod(shape)
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    return move(basis).reshape(n, n).T


def row_at(net: nn.Module, x: Tensor, target: int) -> Tensor:
    leaf = x.clone().requires_grad_()
    with omenn.frozen(leaf):
        f = net(leaf)[:, target].sum()
    return torch.autograd.grad(f, leaf)[0]


def robust(
    values: list[float], kept_of: list[float], outliers: float, median: Any = statistics.median
) -> float:
    middle = median(kept_of)
    spread = median([abs(v - middle) for v in kept_of])
    bound = outliers * (1.4826 * spread + 1e-8)
    kept = [v for v, c in zip(values, kept_of, strict=True) if abs(c - middle) <= bound]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("build", BUILDS)
def test_it_is_the_formula(build: Any) -> None:
    net, x, noise, steps = seeded(build()), draw(1, 2, 6, 6), 0.6, 7
    e = explained(net, x, steps=steps, noise=noise, seed=3)
    inputs = FrozenRun(net, x, None, "none", None, {}).inputs
    rows = []
    for i, step in enumerate(Moves(steps, 3, noise, None, None, None, None).of(inputs)):
        t = noise * i / (steps - 1)
        turn = matrix_of(step.affine, (2, 6, 6))
        moved = (turn @ x.flatten()).reshape(x.shape)
        drawn_noise = step._noise(0, x)
        seen = (1 - t) * moved + (1 - (1 - t) ** 2) ** 0.5 * drawn_noise
        rows.append((1 - t) * (turn.T @ row_at(net, seen, 1).flatten()))
    expected = []
    for j, xj in enumerate(x.flatten().tolist()):
        values = [float(row[j]) for row in rows]
        expected.append(xj * robust(values, [v * xj for v in values], 2.5))
    found = e.contribution.flatten()
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )
    everything = explained(net, x, steps=steps, noise=noise, seed=3, outliers=None)
    torch.testing.assert_close(everything.weight.flatten(), torch.stack(rows).mean(0))
    assert not torch.allclose(everything.matrix, e.matrix, rtol=1e-3)


def test_an_outlier_has_no_say() -> None:
    """A network whose row at x is 1, and enormous wherever x is seen below −1."""

    def net(x: Tensor) -> Tensor:
        return (x + 1e6 * F.relu(-1 - x)).sum(1, keepdim=True)

    x = torch.full((1, 400), 0.0, dtype=torch.float64) + 0.5
    e = explained(net, x, 0, steps=25, noise=0.3)
    assert float(e.weight.min()) >= 0.7
    assert float(e.weight.max()) <= 1.0
    assert explained(net, x, 0, steps=25, noise=0.3, outliers=None).weight.min() < -1e3


def test_outliers_are_told_by_what_they_contribute() -> None:
    net, x = seeded(convnet()), torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    e, everything = (explained(net, x, steps=9, noise=0.9, outliers=k) for k in (2.5, None))
    torch.testing.assert_close(e.weight, everything.weight)  # none contributes, so none is out


# --- the moves -----------------------------------------------------------------------------------


def test_affine_maps_are_what_they_are_called() -> None:
    x = draw(2, 3, 6, 6)
    assert torch.allclose(Affine(mirror=True)(x), x.flip(-1))
    quarter = Affine(angle=math.pi / 2)(x)
    assert torch.allclose(quarter, x.rot90(1, (-2, -1)), atol=1e-9)
    right = Affine(right=2 / 6)(x)  # everything is taken from one pixel to the right
    assert torch.allclose(right, F.pad(x[..., 1:], (0, 1)))
    down = Affine(down=4 / 6)(x)
    assert torch.allclose(down, F.pad(x[..., 2:, :], (0, 0, 0, 2)))
    assert torch.allclose(Affine(size=2)(torch.ones_like(x)), torch.ones_like(x))
    assert Affine(size=0.5)(torch.ones_like(x))[..., 0, 0].abs().max() == 0


def test_a_rotation_keeps_distances_in_images_that_are_not_square() -> None:
    x = torch.zeros(1, 1, 21, 41, dtype=torch.float64)
    x[..., 10, 25] = 1  # five to the right of the middle
    turned = Affine(angle=math.pi / 2)(x)[0, 0]
    assert float(turned.sum()) == pytest.approx(1)
    assert divmod(int(turned.argmax()), 41) in ((5, 20), (15, 20))


@hypothesis.given(
    rotation=st.floats(0, 40),
    translation=st.floats(0, 0.5),
    scaling=st.floats(0, 0.9),
    seed=st.integers(0, 10**6),
)
def test_moves_stay_in_their_range(rotation, translation, scaling, seed) -> None:
    inputs = FrozenRun(nn.Identity().eval(), torch.ones(1, 1, 2, 2), None, "none", None, {}).inputs
    for step in Moves(5, seed, 0.5, rotation, translation, scaling, None).of(inputs):
        one = step.affine or Affine()
        assert abs(one.angle) <= math.radians(rotation) + 1e-12
        assert max(abs(one.right), abs(one.down)) <= 2 * translation + 1e-12
        assert 1 - scaling - 1e-12 <= one.size <= 1 + scaling + 1e-12


def test_noise_is_standard_normal_and_other_in_every_step_and_input() -> None:
    x = torch.zeros(4, 9, 50)
    inputs = FrozenRun(nn.Identity().eval(), x, None, "none", None, {}).inputs
    inputs.batch.append(0)  # a second input
    steps = Moves(6, 0, 0.3, None, None, None, None).of(inputs)
    found = torch.stack([step._noise(0, x) for step in steps])
    assert torch.equal(found[:, 0], found[:, 3])  # the same for every sample
    assert abs(float(found[:, 0].mean())) < 0.06
    assert abs(float(found[:, 0].std()) - 1) < 0.06
    assert len({float(v) for v in found[:, 0, 0, 0]}) == 6
    assert not torch.equal(found[0], steps[0]._noise(1, x))


@pytest.mark.parametrize("build", BUILDS)
def test_neighbours_in_the_batch_change_nothing(build: Any) -> None:
    net, x = seeded(build()), draw(3, 2, 6, 6)
    together = explained(net, x, steps=6).matrix
    alone = torch.cat([explained(net, row[None], steps=6).matrix for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    turned = explained(net, x.flip(0), steps=6).matrix.flip(0)
    torch.testing.assert_close(together, turned, rtol=1e-9, atol=1e-12)


def test_single_precision_agrees_with_double() -> None:
    net, x = seeded(convnet()), draw(2, 2, 6, 6)
    double = explained(net, x, steps=9, outliers=None).matrix
    single = explained(net.float(), x.float(), steps=9, outliers=None).matrix
    assert (single.double() - double).abs().amax() <= 1e-3 * double.abs().amax()


def test_a_seed_is_a_result_and_the_random_state_of_the_caller_stays() -> None:
    net, x = seeded(convnet()), draw(1, 2, 6, 6)
    state = torch.get_rng_state()
    first = explained(net, x, steps=5, seed=11)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(first.matrix, explained(net, x, steps=5, seed=11).matrix)
    assert not torch.allclose(first.matrix, explained(net, x, steps=5, seed=12).matrix)


# --- targets and inputs --------------------------------------------------------------------------


def test_the_class_is_that_of_the_input_itself() -> None:
    net, x = seeded(nn.Linear(4, 5)), draw(3, 4)
    e = explained(net, x, None, steps=5, noise=1.0, outliers=None)
    index = net(x).argmax(1)
    assert torch.equal(e.target, index)
    shrunk = sum(1 - k / 4 for k in range(5)) / 5
    torch.testing.assert_close(e.weight, net.weight[index].detach() * shrunk)
    rival = net(x).scatter(1, index[:, None], -torch.inf).argmax(1)
    e = explained(net, x, omenn.Contrast(index, "runner-up"), steps=5, noise=1.0, outliers=None)
    torch.testing.assert_close(
        e.weight, (net.weight[index] - net.weight[rival]).detach() * shrunk, rtol=1e-9, atol=1e-9
    )


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, scale: Tensor) -> Any:
        return {"scores": self.head(F.gelu(self.table(ids)).mean(1) * scale[:, None])}


def test_ids_and_several_inputs_have_noise_alone() -> None:
    net = seeded(Words())
    given = {"ids": torch.tensor([[1, 2, 3], [6, 7, 8]]), "scale": draw(2, 4)[:, 0]}
    still = explained(net, given, 0, output="scores", steps=3, noise=0)
    expected = omenn.explain(net, given, 0, output="scores", bias="separate")
    for key, shape in (("ids", (2, 3)), ("scale", (2,))):
        torch.testing.assert_close(still.matrix[key], expected.matrix[key])
        assert still.matrix[key].shape == shape
    noisy = explained(net, given, 0, output="scores", steps=3, noise=0.5)
    assert not torch.allclose(noisy.matrix["ids"], still.matrix["ids"])


def test_a_batch_that_is_explained_as_one_object() -> None:
    net, x = seeded(nn.Linear(4, 5)), draw(3, 4)
    e = explained(net, x, lambda out: out[:, 1].sum(), steps=3, noise=0.5, outliers=None)
    expected = net.weight[1].detach() * (1 + 0.75 + 0.5) / 3
    torch.testing.assert_close(e.weight, expected.expand(3, 4))


def test_a_later_module() -> None:
    net, x = seeded(convnet()), draw(2, 2, 6, 6)
    e = explained(net, x, steps=1, at="3", resample="none", **STILL)
    expected = omenn.explain(net, x, 1, at="3", resample="none")
    torch.testing.assert_close(e.contribution, expected.contribution)
    assert explained(net, x, steps=3, at="3").matrix.shape == (2, 6, 6)


# --- post-processing -----------------------------------------------------------------------------


def slow_smoothing(m: Tensor, width: int, space: float, value: float | None) -> Tensor:
    """Weighted means of neighbours, one after the other."""
    reach, (height, wide) = width // 2, m.shape
    out = torch.zeros_like(m)
    full = sum(
        math.exp(-0.5 * (di**2 + dj**2) / space**2)
        for di in range(-reach, reach + 1)
        for dj in range(-reach, reach + 1)
    )
    for i in range(height):
        for j in range(wide):
            total = weight = 0.0
            for di in range(-reach, reach + 1):
                for dj in range(-reach, reach + 1):
                    a, b = i + di, j + dj
                    there = float(m[a, b]) if 0 <= a < height and 0 <= b < wide else 0.0
                    w = math.exp(-0.5 * (di**2 + dj**2) / space**2)
                    if value is not None:
                        w *= math.exp(-0.5 * ((there - float(m[i, j])) / value) ** 2)
                    total, weight = total + w * there, weight + w
            out[i, j] = total / (full if value is None else weight + 1e-8)
    return out


def test_the_published_form() -> None:
    net, x = seeded(convnet()), draw(2, 2, 6, 6)
    raw = explained(net, x, steps=3)
    e = explained(net, x, steps=3, postprocess="published")
    for k in range(2):
        m = raw.contribution[k].sum(0).clamp_min(0)
        m = 0.5 * m + 0.5 * slow_smoothing(m, 11, 7.0, None)
        m = slow_smoothing(m, 5, 0.5, 0.05)
        torch.testing.assert_close(e.matrix[k], m / m.max(), rtol=1e-9, atol=1e-12)
    assert torch.equal(e.contribution, raw.contribution)
    assert raw.processing == ()
    assert e.processing == (
        "published form of DAVE: positive part, Gaussian, bilateral, largest 1; lossy",
    )
    torch.testing.assert_close(e.residual, e.output - e.matrix.flatten(1).sum(1))
    assert e.promise == "none"


def test_the_bilateral_filter_keeps_what_is_even_inside() -> None:
    flat = torch.full((1, 15, 16), 3.0)
    torch.testing.assert_close(bilateral(flat, 5, 0.5, 0.05)[:, 2:-2, 2:-2], flat[:, 2:-2, 2:-2])


def test_published_is_the_lower_median_and_the_published_form() -> None:
    net, x, steps = seeded(convnet()), draw(1, 2, 6, 6), 4
    inputs = FrozenRun(net, x, None, "none", None, {}).inputs
    moves = Moves(steps, 3, 0.6, 0, 0, 0, False).of(inputs)
    rows = []
    for i, step in enumerate(moves):
        t = 0.6 * i / (steps - 1)
        seen = (1 - t) * x + (1 - (1 - t) ** 2) ** 0.5 * step._noise(0, x)
        rows.append((1 - t) * row_at(net, seen, 1).flatten())
    expected = []
    for j, xj in enumerate(x.flatten().tolist()):
        values = [float(row[j]) for row in rows]
        expected.append(xj * robust(values, [v * xj for v in values], 2.5, statistics.median_low))
    options: dict[str, Any] = {**STILL, "steps": steps, "noise": 0.6, "seed": 3}
    e = explained(net, x, published=True, **options)
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(e.contribution.flatten(), wanted, rtol=1e-9, atol=1e-12)
    own = explained(net, x, **options)
    assert not torch.allclose(own.contribution, e.contribution)
    m = e.contribution[0].sum(0).clamp_min(0)
    m = 0.5 * m + 0.5 * slow_smoothing(m, 11, 7.0, None)
    m = slow_smoothing(m, 5, 0.5, 0.05)
    torch.testing.assert_close(e.matrix[0], m / m.max(), rtol=1e-9, atol=1e-12)


# --- what is refused -----------------------------------------------------------------------------

REFUSED: dict[str, list[Any]] = {
    "steps": [0, 2.5, True],
    "noise": [-0.1, 1.5, None, float("nan")],
    "rotation": [-3],
    "translation": [2],
    "scaling": [1],
    "flip": ["no"],
    "outliers": [0, "MAD"],
    "seed": [0.5, 2**70],
    "postprocess": ["blur"],
    "resample": ["cubic"],
    "published": ["yes"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in REFUSED.items() for v in vs])
def test_options_out_of_their_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(omenn.InputError, match=f"^{name}\\b"):
        explained(seeded(convnet()), draw(1, 2, 6, 6), **{name: value})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rotation": 5}, r"rotation= moves images \(B, C, H, W\), but an input of the shape "
         r"\(2, 4\) is explained\. Leave it at None, which moves images alone, or switch it off"),
        ({"flip": True}, r"flip= moves images"),
        ({"postprocess": "published"}, r"postprocess='published' is for images \(B, C, H, W\), but "
         r"an input of the shape \(2, 4\) is explained\. Choose postprocess='none'\."),
    ],
)  # fmt: skip
def test_images_are_asked_for_where_there_are_none(options: dict[str, Any], said: str) -> None:
    with pytest.raises(omenn.InputError, match=said):
        explained(nn.Linear(4, 3).eval(), torch.rand(2, 4), **options)


def test_a_small_map_is_smoothed_as_well() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(50, 3)).eval()
    e = explained(net, torch.rand(1, 2, 5, 5), steps=1, postprocess="published")
    assert e.matrix.shape == (1, 5, 5)
    assert float(e.matrix.max()) == 1


def test_nothing_of_the_caller_changes_also_after_an_error() -> None:
    net, x = seeded(convnet()), draw(1, 2, 6, 6)
    before, given = {k: v.clone() for k, v in net.state_dict().items()}, x.clone()
    with torch.no_grad():
        explained(net, x, steps=2)
        with pytest.raises(omenn.TargetError):
            explained(net, x, 99)
        assert not torch.is_grad_enabled()
    assert torch.equal(x, given)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())
