"""Global Attribution Evaluation: a slow reference, exact fractions, linear models, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omenn.errors import InputError, TargetError
from omenn.metrics.explainers import explainer, random
from omenn.metrics.gae import GAEScore, distance, gae, mosaics, positive_part
from refusals import refused

WEIGHT = torch.randn(4, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Network(nn.Module):
    """Nearly linear, so that some maps are consistent with it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.rest = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(24, 4))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ WEIGHT.flatten(1).T + 0.5 * self.rest(x)


def network() -> nn.Module:
    return Network()


def pictures(count: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 4, 4, dtype=torch.float64, generator=g)


def by_hand(images: Tensor, targets: Tensor) -> Tensor:
    return (images * WEIGHT[targets]).sum(1)


# --- the slow reference: a mosaic at a time, by lists -----------------------------------------


def slow_states(
    f: nn.Module, x: Tensor, y: int, steps: int, largest: bool, published: bool
) -> tuple[list[Tensor], list[float], list[float]]:
    """Pictures and logits of all states, and the sum of the shares of each element."""
    states, logits, sums = [], [], [0.0] * x.numel()
    gone: set[int] = set()
    for step in range(steps):
        leaf = x.clone().requires_grad_()
        logit = f(leaf[None])[0, y]
        (grad,) = torch.autograd.grad(logit, leaf)
        a = (x * grad).abs().flatten().tolist()
        total = sum(a) + 1e-9
        sums = [s + v / total for s, v in zip(sums, a, strict=True)]
        states.append(x)
        logits.append(float(logit.detach()))
        if step == steps - 1:
            break
        order = sorted(range(len(a)), key=lambda k: -a[k] if largest else a[k])
        if published:
            share = torch.linspace(1 / steps, 1, steps)[step]
            gone |= set(order[: int(share * len(a))])
        else:
            left = [k for k in order if k not in gone]
            gone |= set(left[: (step + 1) * len(a) // steps - len(gone)])
        x = x.clone()
        for k in gone:
            x.view(-1)[k] = 0
    return states, logits, sums


def slow_distance(a: list[float], b: list[float]) -> float:
    below = sum(map(abs, a)) + sum(map(abs, b)) + 1e-9
    return sum(abs(u - v) for u, v in zip(a, b, strict=True)) / below


def slow_positive(explain: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: int) -> list[float]:
    map = [max(0.0, v) for v in explain(x[None], torch.tensor([y]))[0].flatten().tolist()]
    return [v / max(map) for v in map] if max(map) > 0 else map


def slow_consistency(
    f: nn.Module, explain: Any, x: Tensor, y: int, steps: int, published: bool
) -> float:
    r = slow_positive(explain, x, y)
    channels, pixels = x.shape[0], x[0].numel()
    wide = len(r) > pixels  # a map with channels: each element by its own value
    morf = slow_states(f, x, y, steps, True, published)
    lerf = slow_states(f, x, y, steps, False, published)
    below = [sum(run[2]) + 1e-9 for run in (lerf, morf)]
    above = 0.0
    for k in range(pixels):
        for c in range(channels):
            low, high = (
                run[2][c * pixels + k] / b for run, b in zip((lerf, morf), below, strict=True)
            )
            own = r[c * pixels + k] if wide else r[k] / channels
            above += (low > high) * own - (low < high) * own
    faithful = above / (sum(r) + 1e-9)
    start = morf[1][0] + 1e-9
    if not published:
        logits = f(x[None])[0].tolist()
        mean = sum(logits) / len(logits)
        spread = math.sqrt(sum((v - mean) ** 2 for v in logits) / len(logits))
        start = max(abs(morf[1][0]), spread) + 1e-9
    moved, answered = [], []
    for k in range(1, steps):
        one, other = (slow_positive(explain, run[0][k], y) for run in (morf, lerf))
        moved.append(slow_distance(r, one) - slow_distance(r, other))
        answered.append((lerf[1][k] - morf[1][k]) / start)
    return max(0.0, faithful + 1 - 2 * slow_distance(moved, answered)) / 2


def slow_mosaic(four: list[Tensor]) -> Tensor:
    channels, height, width = four[0].shape
    found = torch.zeros_like(four[0])
    for c in range(channels):
        for row in range(height):
            for column in range(width):
                down, right = row >= height // 2, column >= width // 2
                inner = 2 * (row % (height // 2)), 2 * (column % (width // 2))
                found[c, row, column] = four[2 * down + right][c, inner[0], inner[1]]
    return found


def slow_contrast(
    f: nn.Module, explain: Any, four: list[Tensor], y: int, positive: int, classes: list[int]
) -> float:
    logits = f(four[positive][None])[0].tolist()
    total = sum(map(math.exp, logits))
    p = [math.exp(logits[k]) / total for k in classes]
    r = slow_positive(explain, slow_mosaic(four), y)
    _, height, width = four[0].shape
    above = 0.0
    for row in range(height):
        for column in range(width):
            cell = 2 * (row >= height // 2) + (column >= width // 2)
            score = 2 * p[cell] / p[positive] - 1
            if row in (height // 2 - 1, height // 2) and column in (width // 2 - 1, width // 2):
                score = 1.0
            above += score * sum(r[row * width + column :: height * width])
    return max(0.0, above / (sum(r) + 1e-9))


def slow_gae(
    f: nn.Module,
    explain: Any,
    images: Tensor,
    labels: list[int],
    steps: int,
    published: bool,
    seed: int,
) -> list[tuple[float, float]]:
    """(local consistency, contrastiveness) of each mosaic; drawn is what ``gae`` draws."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).tolist()
    luck = torch.rand(len(images) // 4, 1, generator=generator, dtype=torch.float64).tolist()
    found = []
    for m in range(len(images) // 4):
        numbers = order[4 * m : 4 * m + 4]
        four = [images[k] for k in numbers]
        classes = [int(f(x[None])[0].argmax()) for x in four]
        logits = f(slow_mosaic(four)[None])[0].tolist()
        weights = [math.exp(logits[c]) for c in classes]
        sums = [sum(weights[: j + 1]) / sum(weights) for j in range(3)]
        positive = sum(s < luck[m][0] for s in sums)
        y = classes[positive]
        names = [labels[k] for k in numbers] if published else classes
        consistency = slow_consistency(f, explain, four[positive], y, steps, published)
        contrast = slow_contrast(f, explain, four, y, positive, names)
        found.append((consistency, contrast))
    return found


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("explain", [by_hand, explainer(network(), "omenn")])
def test_against_the_slow_reference(explain: Any, published: bool) -> None:
    f, images = network(), pictures(26)
    labels = torch.arange(26) % 4
    options: dict[str, Any] = {"steps": 5, "published": published, "seed": 3}
    found = gae(f, explain, images, labels, chunk=8, **options)
    expected = slow_gae(f, explain, images, labels.tolist(), **options)
    lc, c = found.local_consistency.values.tolist(), found.contrastiveness.values.tolist()
    assert lc == pytest.approx([e[0] for e in expected], abs=1e-9)
    assert c == pytest.approx([e[1] for e in expected], abs=1e-9)
    assert found.gae.values.tolist() == pytest.approx([a * b for a, b in expected], abs=1e-9)
    assert found.gae.images == 6
    assert found.gae.counted["pictures left over"] == 2
    assert len({round(v, 6) for v in c}) > 2
    assert sum(v > 0 for v in lc) > 2


def with_channels(images: Tensor, targets: Tensor) -> Tensor:
    """x ⊙ ∇f, whose channels are not summed."""
    leaf = images.clone().requires_grad_()
    f = network()(leaf).gather(1, targets[:, None]).sum()
    return (leaf * torch.autograd.grad(f, leaf)[0]).detach()


def test_published_maps_may_have_channels() -> None:
    f, images = network(), pictures(24)
    labels = torch.arange(24) % 4
    options: dict[str, Any] = {"steps": 5, "published": True, "seed": 3}
    found = gae(f, with_channels, images, labels, chunk=8, **options)
    expected = slow_gae(f, with_channels, images, labels.tolist(), **options)
    lc, c = found.local_consistency.values.tolist(), found.contrastiveness.values.tolist()
    assert lc == pytest.approx([e[0] for e in expected], abs=1e-9)
    assert c == pytest.approx([e[1] for e in expected], rel=1e-12)
    own = explainer(f, "xgradient", channels=True)
    again = gae(f, own, images, labels, chunk=8, **options)
    torch.testing.assert_close(again.gae.values, found.gae.values)
    summed = gae(f, lambda x, y: with_channels(x, y).sum(1), images, labels, **options)
    assert not torch.allclose(summed.local_consistency.values, found.local_consistency.values)
    with pytest.raises(InputError):
        gae(f, with_channels, images, steps=5)


# --- masking ------------------------------------------------------------------------------------


class Spy:
    """An explainer that notes which share of the elements of each picture is zero."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        self.shares += (images == 0).double().flatten(1).mean(1).tolist()
        return images.sum(1).abs()


def linear(shape: tuple[int, ...] = (1, 10, 10), classes: int = 4, seed: int = 0) -> nn.Module:
    size = math.prod(shape)
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, classes, bias=False)).double().eval()
    g = torch.Generator().manual_seed(seed)
    net[1].weight.data = torch.randn(classes, size, dtype=torch.float64, generator=g)
    return net


class TestFractions:
    def shares(self, published: bool, steps: int = 10) -> tuple[list[float], list[float]]:
        """Shares of zeros in the masked pictures, most and least relevant first."""
        spy = Spy()
        images = torch.rand(4, 1, 10, 10, dtype=torch.float64) + 0.1
        gae(linear(), spy, images, torch.arange(4), steps=steps, published=published)
        whole, mosaic = spy.shares[0], spy.shares[-1]
        assert whole == mosaic == 0
        return spy.shares[1:-1:2], spy.shares[2:-1:2]

    def test_corrected_fractions_are_the_same_in_both_orders(self) -> None:
        most, least = self.shares(published=False)
        tenths = [k / 10 for k in range(1, 10)]
        assert most == least == tenths

    def test_published_fractions_add_up_in_one_order_alone(self) -> None:
        """They are float32 and round down: 0.2, 0.3, 0.4 and 0.5 of 100 are one element short."""
        most, least = self.shares(published=True)
        assert most == [0.1, 0.29, 0.58, 0.97, 1, 1, 1, 1, 1]
        assert least == [0.1, 0.19, 0.29, 0.39, 0.49, 0.6, 0.7, 0.8, 0.9]

    def test_fractions_that_are_not_whole_are_rounded_down(self) -> None:
        most, least = self.shares(published=False, steps=7)
        assert most == least == [k * 100 // 7 / 100 for k in range(1, 7)]

    def test_the_first_masked_are_the_most_and_the_least_relevant(self) -> None:
        net, seen = linear(), []

        def explain(images: Tensor, targets: Tensor) -> Tensor:
            seen.append((images, targets))
            return images.sum(1).abs()

        images = torch.rand(4, 1, 10, 10, dtype=torch.float64) + 0.1
        gae(net, explain, images, steps=5)
        (x, y), (most, _), (least, _) = seen[:3]
        a = (net[1].weight[y] * x.flatten(1)).abs().flatten()
        for masked, largest in ((most, True), (least, False)):
            expected = set(a.topk(20, largest=largest).indices.tolist())
            assert set((masked == 0).flatten().nonzero()[:, 0].tolist()) == expected


# --- pieces ---------------------------------------------------------------------------------------


def test_mosaics() -> None:
    four = torch.randn(3, 4, 2, 6, 8)
    found = mosaics(four)
    for m in range(3):
        assert torch.equal(found[m], slow_mosaic(list(four[m])))


def test_positive_part() -> None:
    maps = torch.tensor([[[-1.0, 2.0], [4.0, 0.0]], [[-1.0, -2.0], [0.0, 0.0]]])
    assert positive_part(maps).tolist() == [[[[0, 0.5], [1, 0]]], [[[0, 0], [0, 0]]]]
    maps[0, 0, 0] = math.nan
    assert positive_part(maps)[0].abs().max() == 0


def test_distance() -> None:
    a, b = torch.randn(2, 5, 3, dtype=torch.float64)
    for k in range(5):
        assert float(distance(a, b)[k]) == pytest.approx(slow_distance(list(a[k]), list(b[k])))
    assert distance(a, a).tolist() == [0] * 5
    assert distance(a * 0, a * 0).tolist() == [0] * 5
    torch.testing.assert_close(distance(a, -a), torch.ones(5, dtype=torch.float64))


# --- models whose truth is known ------------------------------------------------------------------


class TestTruth:
    def test_exact_maps_of_a_linear_model_are_consistent(self) -> None:
        net = linear((1, 8, 8))
        images = torch.rand(64, 1, 8, 8, dtype=torch.float64)
        exact = explainer(net, "omenn")
        scores = {
            name: gae(net, explain, images).local_consistency
            for name, explain in (
                ("exact", exact),
                ("opposite", lambda x, y: -exact(x, y)),
                ("random", random),
                ("constant", explainer(net, "constant")),
            )
        }
        low, _ = scores["exact"].interval()
        assert low > 0.5
        assert scores["opposite"].interval()[1] < low
        assert scores["random"].mean == scores["constant"].mean == 0

    def test_a_map_on_the_positive_picture_alone_is_contrastive(self) -> None:
        """Each class looks at its own colour, and each picture has one."""
        images = torch.zeros(8, 4, 8, 8, dtype=torch.float64)
        for k in range(8):
            images[k, k % 4] = 1.0

        def f(x: Tensor) -> Tensor:
            return 8 * x.mean((2, 3))

        def own(x: Tensor, y: Tensor) -> Tensor:
            return x[torch.arange(len(x)), y]

        def other(x: Tensor, y: Tensor) -> Tensor:
            return x.sum(1) - own(x, y)

        for seed in range(4):
            found = gae(f, own, images[:4], seed=seed).contrastiveness.values
            assert found.tolist() == pytest.approx([1.0])
            found = gae(f, other, images[:4], seed=seed).contrastiveness.values
            # 3 of 48 pixels are in the middle, with a score of 1; the rest has 2 exp(-8) − 1
            assert found.tolist() == [0.0]

    def test_pictures_of_one_class_do_not_contrast(self) -> None:
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
        images = torch.ones(4, 1, 4, 4, dtype=torch.float64)
        assert gae(net, random, images).contrastiveness.mean == pytest.approx(1)

    def test_labels_decide_the_published_contrast_alone(self) -> None:
        f, images = network(), pictures(16)
        labels = f(images).argmax(1)
        for published in (False, True):
            right, wrong = (
                gae(f, by_hand, images, given, published=published, steps=3)
                for given in (labels, (labels + 1) % 4)
            )
            assert right.local_consistency.values.equal(wrong.local_consistency.values)
            same = right.contrastiveness.values.equal(wrong.contrastiveness.values)
            assert same != published


class TestEdges:
    def test_zero_constant_and_broken_maps(self) -> None:
        f, images = network(), pictures(8)
        zero = gae(f, lambda x, y: x.sum(1) * 0, images, steps=3)
        assert zero.gae.values.tolist() == [0, 0]
        assert zero.contrastiveness.values.tolist() == [0, 0]
        # two positive pictures and two mosaics
        assert zero.gae.counted == {"constant maps": 4, "maps without positive values": 4}
        negative = gae(f, lambda x, y: -x.abs().sum(1), images, steps=3)
        assert negative.gae.values.equal(zero.gae.values)
        assert negative.gae.counted == {"maps without positive values": 4}
        broken = gae(f, lambda x, y: x.sum(1) * math.nan, images, steps=3)
        assert broken.gae.values.equal(zero.gae.values)
        # and two steps of two orders
        assert broken.gae.counted == {"maps that are not finite": 12}
        constant = gae(f, explainer(f, "constant"), images, steps=3)
        assert constant.gae.counted == {"constant maps": 4}
        assert torch.isfinite(constant.gae.values).all()

    def test_pictures_of_zeros_and_logits_of_zero(self) -> None:
        net = linear((1, 4, 4))
        for published in (False, True):
            images = torch.zeros(4, 1, 4, 4, dtype=torch.float64)
            found = gae(net, random, images, torch.arange(4), published=published, steps=3)
            assert torch.isfinite(found.gae.values).all()

    def test_a_single_class(self) -> None:
        found = gae(linear((1, 4, 4), classes=1), random, pictures(4)[:, :1], steps=3)
        assert found.contrastiveness.mean == pytest.approx(1)

    def test_labels_that_the_model_is_sure_against_stay_finite(self) -> None:
        """p_j / p_pos is e^1000, which the published code divides by zero for."""

        def f(x: Tensor) -> Tensor:
            return torch.stack([x.sum((1, 2, 3)) * 0 + 500, x.sum((1, 2, 3)) * 0 - 500], 1)

        labels = torch.tensor([0, 0, 0, 1])
        for seed in range(8):
            found = gae(f, random, pictures(4), labels, published=True, steps=2, seed=seed)
            assert torch.isfinite(found.gae.values).all()

    def test_chunks_do_not_matter_and_seeds_do(self) -> None:
        f, images = network(), pictures(24)
        one, other, third = (
            gae(f, by_hand, images, steps=3, chunk=chunk, seed=seed).gae.values
            for chunk, seed in ((4, 1), (100, 1), (4, 2))
        )
        torch.testing.assert_close(one, other)
        assert not torch.allclose(one, third)

    def test_positives_are_drawn_by_the_softmax_of_the_mosaic(self) -> None:
        """Class 0 is seen best by far in any mosaic, so its picture is the positive one."""
        asked: list[int] = []

        def f(x: Tensor) -> Tensor:
            return x.mean((2, 3)) * torch.tensor([40.0, 1.0, 1.0, 1.0], dtype=x.dtype)

        def explain(x: Tensor, y: Tensor) -> Tensor:
            asked.extend(y.tolist())
            return x.sum(1)

        images = torch.zeros(4, 4, 4, 4, dtype=torch.float64)
        images[range(4), range(4)] = 1.0
        for seed in range(10):
            gae(f, explain, images, steps=2, seed=seed)
        assert set(asked) == {0}

    def test_names_and_ticks(self) -> None:
        ticks: list[int] = []
        f, images = network(), pictures(8)
        options: dict[str, Any] = {"steps": 2, "chunk": 4, "tick": lambda: ticks.append(1)}
        found: GAEScore = gae(f, by_hand, images, torch.zeros(8).long(), published=True, **options)
        names = [s.name for s in (found.local_consistency, found.contrastiveness, found.gae)]
        assert names == [
            "published local consistency",
            "published contrastiveness",
            "published gae",
        ]
        assert len(ticks) == 2
        assert gae(f, by_hand, images, **options).gae.name == "gae"

    def test_nothing_of_the_callers_changes(self) -> None:
        f, images = network(), pictures(8)
        before, state = images.clone(), torch.get_rng_state()
        gae(f, by_hand, images, steps=3)
        assert torch.equal(images, before)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(p.grad is None and p.requires_grad for p in f.parameters())
        with torch.no_grad():
            gae(f, by_hand, images, steps=3)
            assert not torch.is_grad_enabled()


class TestRefused:
    @pytest.mark.parametrize("shape", [(3, 2, 4, 4), (4, 2, 5, 4), (4, 2, 4, 3)])
    def test_pictures(self, shape: tuple[int, ...]) -> None:
        text = r"mosaics need four pictures or more, with even sides; got \(" + str(shape)[1:-1]
        with pytest.raises(InputError, match=text):
            gae(network(), by_hand, torch.zeros(shape))

    @pytest.mark.parametrize("steps", [1, 0, 2.0, True])
    def test_steps(self, steps: Any) -> None:
        with refused("steps", repr(steps)):
            gae(network(), by_hand, pictures(4), steps=steps)

    def test_labels(self) -> None:
        f, images = network(), pictures(4)
        text = "published=True compares with the true classes: give labels="
        with pytest.raises(InputError, match=text):
            gae(f, by_hand, images, published=True)
        with pytest.raises(TargetError, match="one for each of the 4 images or one for all"):
            gae(f, by_hand, images, torch.zeros(3).long(), published=True)
        with pytest.raises(TargetError, match="target 4 is not among the 4 classes"):
            gae(f, by_hand, images, torch.tensor([0, 1, 4, 2]), published=True)

    def test_explainers_and_models(self) -> None:
        f, images = network(), pictures(4)
        text = r"explainer returned .* of the shape \(1, 2, 4, 4\) for images of the shape"
        with pytest.raises(InputError, match=text):
            gae(f, lambda x, y: x, images)
        with pytest.raises(InputError, match=r"f has no gradient: .* Give a function that runs"):
            gae(lambda x: f(x).detach(), by_hand, images)
        with pytest.raises(InputError, match="f must return logits of the shape"):
            gae(lambda x: f(x)[:, 0], by_hand, images)
        with pytest.raises(InputError, match=r"images must be \(B, C, H, W\)"):
            gae(f, by_hand, images[0])
