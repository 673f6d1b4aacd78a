"""Randomisation: random models, similarity against scipy and skimage, the tests against Quantus."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from omenn.errors import InputError, ModelError, TargetError
from omenn.metrics.explainers import TRIVIAL, Explainer, explainer
from omenn.metrics.quantus import _Logits, quantus_metric
from omenn.metrics.random_layers import layer_seed, layers, randomisations, randomised
from omenn.metrics.randomisation import (
    efficient_randomisation,
    parameter_randomisation,
    random_logit,
    smooth_randomisation,
    smoothed,
)
from omenn.metrics.similarity import (
    histogram_entropy,
    rank_similarity,
    structural_similarity,
)
from refusals import refused

LEFT_OUT = "left out: a constant map of a model, but not of the random one"


def make(model: nn.Module) -> Explainer:
    return explainer(model, "omenn")


@pytest.fixture
def case() -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 35, 4))
    return net.eval(), torch.rand(3, 2, 9, 7), torch.tensor([2, 0, 1])


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


class Odd(nn.Module):
    """Parameters and state of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(3 + 2 * torch.randn(50, 40))
        self.single = nn.Parameter(torch.tensor(7.0))
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.norm.running_mean += 5  # type: ignore[operator]
        self.twice = nn.ModuleList([nn.Linear(4, 4)] * 2)
        self.weighted = parametrizations.weight_norm(nn.Linear(4, 3))
        self.plain = nn.ReLU()


class TestRandomModels:
    def test_layers(self) -> None:
        expected = ("", "norm", "twice.0", "weighted", "weighted.parametrizations.weight")
        assert layers(Odd()) == expected

    def test_a_layer_is_as_its_own_reset_makes_it(self, case: Any) -> None:
        net = case[0]
        found = randomised(net, seed=11)
        for number, name in enumerate(layers(net)):
            fresh = copy.deepcopy(net.get_submodule(name))
            torch.manual_seed(layer_seed(11, number))
            fresh.reset_parameters()  # type: ignore[operator]
            given = found.get_submodule(name).state_dict()
            assert all(torch.equal(t, given[key]) for key, t in fresh.state_dict().items())

    def test_parameters_without_a_reset_keep_mean_and_deviation(self) -> None:
        net = Odd()
        found = randomised(net)
        assert isinstance(found, Odd)
        own, other = net.token.detach(), found.token.detach()
        n = own.numel()
        assert not torch.isclose(own, other).any(1).all()
        assert abs(float(other.mean() - own.mean())) < 4 * float(own.std()) / math.sqrt(n)
        assert abs(float(other.std() / own.std()) - 1) < 4 / math.sqrt(2 * n)
        assert found.single == net.single  # a normal number without deviation
        assert found.norm.running_mean is not None
        assert found.norm.running_mean.tolist() == [0] * 4
        assert found.twice[0] is found.twice[1]
        assert not torch.allclose(found.twice[0].weight, net.twice[0].weight)  # type: ignore[arg-type]
        assert not torch.allclose(found.weighted.weight, net.weighted.weight)  # type: ignore[arg-type]

    def test_orders(self, case: Any) -> None:
        net = case[0]
        before = state(net)
        whole = state(randomised(net, 4))
        changed = {}
        for order in ("top_down", "bottom_up", "independent"):
            changed[order] = []
            for name, random in randomisations(net, order, seed=4):  # type: ignore[arg-type]
                now = random.state_dict()
                new = {key.split(".")[0] for key in now if not torch.equal(now[key], before[key])}
                changed[order].append((name, sorted(new)))
                for key in now:  # a layer's numbers do not depend on the order
                    assert torch.equal(now[key], before[key]) or torch.equal(now[key], whole[key])
        assert changed == {
            "top_down": [("3", ["3"]), ("0", ["0", "3"])],
            "bottom_up": [("0", ["0"]), ("3", ["0", "3"])],
            "independent": [("0", ["0"]), ("3", ["3"])],
        }

    def test_seeds(self, case: Any) -> None:
        one, same, other = (randomised(case[0], seed)[0].weight for seed in (1, 1, 2))  # type: ignore[index]
        assert torch.equal(one, same)
        assert not torch.isclose(one, other).any(1).all()

    def test_what_the_caller_owns_is_left_alone(self) -> None:
        net = Odd()
        net.plain.register_forward_hook(lambda *_: None)
        net.token.requires_grad_(False)
        before, flags = state(net), [p.requires_grad for p in net.parameters()]
        randomness = torch.get_rng_state()
        for _, random in randomisations(net, "independent"):
            assert random is not net
            assert [p.requires_grad for p in random.parameters()] == flags
            assert random.training == net.training
        assert torch.equal(torch.get_rng_state(), randomness)
        assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())
        assert torch.is_grad_enabled()

    def test_errors(self, case: Any) -> None:
        with pytest.raises(ModelError, match=r"of a torch.nn.Module, got function. Give the modul"):
            randomised(make)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="has no parameters that could be randomised"):
            randomised(nn.ReLU())
        with refused("order", "topdown"):
            next(randomisations(case[0], "topdown"))  # type: ignore[arg-type]
        net = nn.Linear(2, 2)
        net.lock = threading.Lock()  # type: ignore[assignment]
        with pytest.raises(ModelError, match=r"cannot be copied.*pickle.*Take off what"):
            randomised(net)


class TestSimilarity:
    @given(st.integers(0, 2**31), st.booleans())
    @settings(max_examples=15)
    def test_ranks_against_scipy(self, seed: int, ties: bool) -> None:
        stats = pytest.importorskip("scipy.stats")
        g = torch.Generator().manual_seed(seed)
        a, b = torch.randn(2, 4, 6, 5, generator=g, dtype=torch.float64)
        a, b = (a.round(), (b + a).round()) if ties else (a, b + a)
        expected = [stats.spearmanr(x.flatten(), y.flatten())[0] for x, y in zip(a, b, strict=True)]
        assert rank_similarity(a, b).tolist() == pytest.approx(expected, abs=1e-12)

    def test_ranks_of_a_picture_of_usual_size(self) -> None:
        a = torch.randn(1, 224, 224)
        assert rank_similarity(a, a**3).tolist() == pytest.approx([1.0])
        assert abs(float(rank_similarity(a, a.flip(1))[0])) < 5 / 224

    @pytest.mark.parametrize("shape", [(9, 7), (20, 31), (5, 12), (2, 2)])
    def test_structure_against_skimage(self, shape: tuple[int, int]) -> None:
        metrics = pytest.importorskip("skimage.metrics")
        a, b = torch.randn(2, 3, *shape, dtype=torch.float64)
        b = 4 * (b + a)
        side = min(7, *(s - 1 + s % 2 for s in shape))
        for k in range(3):
            x, y = (m[k].numpy() / m[k].abs().max().item() for m in (a, b))
            span = max(x.max(), y.max()) - min(x.min(), y.min())
            if side == 1:  # no variance within a window of one pixel
                c = (0.01 * span) ** 2
                expected = ((2 * x * y + c) / (x * x + y * y + c)).mean()
            else:
                expected = metrics.structural_similarity(x, y, win_size=side, data_range=span)
            found = float(structural_similarity(a[k : k + 1], b[k : k + 1])[0])
            assert found == pytest.approx(expected, abs=1e-10)

    @pytest.mark.parametrize("similarity", [rank_similarity, structural_similarity])
    def test_maps_without_structure(self, similarity: Any) -> None:
        flat, zero, some = torch.full((1, 9, 9), 2.0), torch.zeros(1, 9, 9), torch.randn(1, 9, 9)
        assert similarity(some, some).tolist() == pytest.approx([1.0])
        assert similarity(flat, 3 * flat).tolist() == [1.0]
        assert similarity(zero, zero).tolist() == [1.0]
        assert float(similarity(flat, some)[0]) < 0.5
        assert float(similarity(some, zero)[0]) < 0.5
        assert rank_similarity(some, zero).tolist() == [0.0]

    @given(st.integers(0, 2**31), st.sampled_from([2, 10, 100]))
    @settings(max_examples=15)
    def test_entropy_against_numpy(self, seed: int, bins: int) -> None:
        import numpy as np

        g = torch.Generator().manual_seed(seed)
        maps = torch.randn(3, 12, 11, generator=g, dtype=torch.float64)
        expected = []
        for m in maps:
            share = np.histogram(m.numpy(), bins=bins)[0] / 132
            expected.append(-sum(p * math.log(p) for p in share.tolist() if p))
        assert histogram_entropy(maps, bins).tolist() == pytest.approx(expected, abs=1e-12)
        assert histogram_entropy(maps.sign() * 0, bins).tolist() == [0, 0, 0]


class TestAgainstQuantus:
    """With its random models and its noise replaced by ours."""

    @pytest.fixture
    def ours(self, case: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        pytest.importorskip("quantus")
        from quantus.helpers.model.pytorch_model import PyTorchModel

        def ours(self: Any, order: Any = "top_down", seed: int = 42) -> Iterator[Any]:
            for name, random in randomisations(case[0], order):
                yield f"model.{name}", _Logits(random, case[1])

        monkeypatch.setattr(PyTorchModel, "get_random_layer_generator", ours)
        return case

    @pytest.mark.parametrize("order", ["top_down", "bottom_up", "independent"])
    def test_plain(self, order: Any, ours: Any) -> None:
        net, images, targets = ours
        given = quantus_metric(
            "MPRT", net, images, targets, make(net), make=make, layer_order=order
        )
        found = parameter_randomisation(make, net, images, targets, order=order)
        torch.testing.assert_close(found.mean.values, given.values, atol=1e-6, rtol=0)
        last = quantus_metric(
            "MPRT", net, images, targets, make(net), make=make, layer_order=order,
            return_last_correlation=True,
        )  # fmt: skip
        torch.testing.assert_close(found.last.values, last.values, atol=1e-6, rtol=0)
        assert found.mean.higher == given.higher

    def test_efficient(self, ours: Any) -> None:
        net, images, targets = ours
        given = quantus_metric("EfficientMPRT", net, images, targets, make(net), make=make)
        found = efficient_randomisation(make, net, images, targets)
        torch.testing.assert_close(found.values, given.values, atol=1e-9, rtol=0)
        assert found.higher == given.higher

    def test_smooth(self, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        net, images, targets = ours
        g = torch.Generator().manual_seed(0)
        noise = [[torch.randn(2, 9, 7, generator=g) for _ in range(4)] for _ in range(3)]

        def draws() -> Iterator[Any]:
            while True:
                for sample in range(4):
                    yield torch.stack([each[sample] for each in noise]).numpy()

        drawn = draws()
        monkeypatch.setattr("numpy.random.randn", lambda *shape: next(drawn))
        given = quantus_metric(
            "SmoothMPRT", net, images, targets, make(net), make=make, nr_samples=5
        )
        found = smooth_randomisation(make, net, images, targets, samples=5)
        torch.testing.assert_close(found.mean.values, given.values, atol=1e-4, rtol=0)

    def test_random_logit_of_two_classes(self) -> None:
        quantus = pytest.importorskip("quantus")
        net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 35, 2))
        images, targets = torch.rand(3, 2, 9, 7), torch.tensor([1, 0, 1])
        explain = make(net.eval())
        spearman = quantus.similarity_func.correlation_spearman
        given = quantus_metric(
            "RandomLogit", net, images, targets, explain, similarity_func=spearman
        )
        found = random_logit(explain, images, targets, 2, similarity="spearman")
        torch.testing.assert_close(found.values, given.values, atol=1e-6, rtol=0)
        assert found.higher == given.higher


class TestKnown:
    def test_maps_that_know_no_model_never_change(self, case: Any) -> None:
        net, images, targets = case
        for name in ("centre", "constant"):
            blind = lambda model: TRIVIAL[name]  # noqa: E731, B023
            for similarity in ("spearman", "ssim"):
                found = parameter_randomisation(blind, net, images, targets, similarity=similarity)
                torch.testing.assert_close(found.similarity, torch.ones(3, 2).double())
            assert efficient_randomisation(blind, net, images, targets).values.tolist() == [0] * 3
            same = random_logit(TRIVIAL[name], images, targets, 4)
            assert same.values.tolist() == pytest.approx([1, 1, 1])
        counted = {"constant maps": 3, "constant maps of random models": 6}
        assert dict(found.counted) == counted
        assert dict(found.mean.counted) == counted

    def test_a_map_of_the_first_layer_alone(self, case: Any) -> None:
        """It changes when that layer does, and only then."""
        net, images, targets = case
        weight = lambda m: m[0].weight.detach().flatten()[:63].view(9, 7)  # noqa: E731
        first = lambda m: lambda x, t: weight(m).expand(len(x), -1, -1)  # noqa: E731
        found = parameter_randomisation(first, net, images, targets)
        assert found.layers == ("3", "0")
        assert found.similarity[:, 0].tolist() == pytest.approx([1, 1, 1])
        assert float(found.similarity[:, 1].max()) < 0.5
        torch.testing.assert_close(found.mean.values, found.similarity.mean(1))
        torch.testing.assert_close(found.last.values, found.similarity[:, 1])
        assert "mprt=" in repr(found)
        assert repr(found).endswith("2 layers)")

    def test_a_map_that_turns_its_sign(self, case: Any) -> None:
        """Absolute values are compared, unless the sign shall count."""
        net, images, targets = case
        pattern = torch.randn(9, 7)
        signed = lambda m: lambda x, t: (1 if m is net else -1) * pattern.expand(len(x), -1, -1)  # noqa: E731
        for absolute, expected in ((True, 1.0), (False, -1.0)):
            found = parameter_randomisation(signed, net, images, targets, absolute=absolute)
            torch.testing.assert_close(
                found.similarity, torch.full((3, 2), expected, dtype=torch.float64)
            )

    def test_entropy_rises_from_a_spike_to_noise(self, case: Any) -> None:
        net, images, targets = case
        spike = torch.zeros(9, 7)
        spike[3, 3] = 1
        ramp = torch.arange(63.0).view(9, 7)
        of = lambda m: lambda x, t: (spike if m is net else ramp).expand(len(x), -1, -1)  # noqa: E731
        found = efficient_randomisation(of, net, images, targets, bins=63)
        low = -(math.log(1 / 63) / 63 + 62 / 63 * math.log(62 / 63))
        assert found.values.tolist() == pytest.approx([(math.log(63) - low) / low] * 3)
        flat = lambda m: lambda x, t: (spike * 0 if m is net else ramp).expand(len(x), -1, -1)  # noqa: E731
        found = efficient_randomisation(flat, net, images, targets)
        assert found.values.isnan().all()
        assert dict(found.counted) == {"constant maps": 3, LEFT_OUT: 3}

    def test_smoothing_a_linear_map_averages_the_noise(self) -> None:
        plain: Explainer = lambda x, t: x[:, 0]  # noqa: E731
        images = torch.rand(2, 1, 20, 20, dtype=torch.float64)
        found = smoothed(plain, samples=40, noise=0.1)(images, torch.tensor([0, 0]))
        off = found - images[:, 0]
        for k in range(2):
            span = float(images[k].max() - images[k].min())
            expected = 0.1 * span * math.sqrt(39) / 40  # one of the forty has no noise
            assert abs(float(off[k].std()) / expected - 1) < 4 / math.sqrt(2 * 400)

    def test_the_other_class_is_another_and_any_other(self) -> None:
        seen: list[Tensor] = []

        def explain(x: Tensor, t: Tensor) -> Tensor:
            seen.append(t)
            return x[:, 0]

        images, targets = torch.rand(90, 1, 3, 3), torch.arange(90) % 3
        random_logit(explain, images, targets, 4, chunk=90)
        own, other = seen
        assert (own != other).all()
        assert {(int(a), int(b)) for a, b in zip(own, other, strict=True)} == {
            (a, b) for a in range(3) for b in range(4) if a != b
        }


CASCADES = [parameter_randomisation, smooth_randomisation]


class TestEveryTest:
    @pytest.mark.parametrize("metric", CASCADES)
    def test_seeds_batches_and_chunks(self, metric: Any, case: Any) -> None:
        net, images, targets = case
        options = {"samples": 3} if metric is smooth_randomisation else {}
        whole = metric(make, net, images, targets, seed=3, **options).similarity
        sizes: list[int] = []

        def watched(model: nn.Module) -> Explainer:
            def explain(x: Tensor, t: Tensor) -> Tensor:
                sizes.append(len(x))
                return make(model)(x, t)

            return explain

        small = metric(watched, net, images, targets, seed=3, chunk=2, **options).similarity
        first = metric(make, net, images[:2], targets[:2], seed=3, **options).similarity
        torch.testing.assert_close(small, whole, atol=2e-3, rtol=0)
        torch.testing.assert_close(first, whole[:2], atol=2e-3, rtol=0)
        other = metric(make, net, images, targets, seed=4, **options).similarity
        assert not torch.allclose(other, whole, atol=2e-3)
        assert max(sizes) == 2

    @pytest.mark.parametrize("metric", [*CASCADES, efficient_randomisation, random_logit])
    def test_what_the_caller_owns_is_left_alone(self, metric: Any, case: Any) -> None:
        net, images, targets = case
        net.requires_grad_(False)
        before, randomness = state(net), torch.get_rng_state()
        given = (images.clone(), targets.clone())
        if metric is random_logit:
            metric(make(net), images, targets, 4)
        else:
            options = {"samples": 2} if metric is smooth_randomisation else {}
            metric(make, net, images, targets, **options)
            with pytest.raises(InputError, match="do not fit"):
                metric(lambda m: lambda x, t: x[:, 0, :5], net, images, targets, **options)
        assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
        assert torch.equal(torch.get_rng_state(), randomness)
        assert torch.equal(images, given[0])
        assert torch.equal(targets, given[1])
        assert not any(m._forward_hooks or m.training for m in net.modules())

    def test_errors(self, case: Any) -> None:
        net, images, targets = case
        for metric in CASCADES:
            with refused("similarity", "ssimm"):
                metric(make, net, images, targets, similarity="ssimm")
            with pytest.raises(InputError, match="order='down' is not known"):
                metric(make, net, images, targets, order="down", **(
                    {"samples": 1} if metric is smooth_randomisation else {}
                ))  # fmt: skip
            with refused("chunk", "0"):
                metric(make, net, images, targets, chunk=0)
        with refused("samples", "0"):
            smooth_randomisation(make, net, images, targets, samples=0)
        with refused("noise", "-1"):
            smooth_randomisation(make, net, images, targets, noise=-1)
        with refused("bins", "1"):
            efficient_randomisation(make, net, images, targets, bins=1)
        with pytest.raises(ModelError, match="got function"):
            efficient_randomisation(lambda m: make(net), lambda x: net(x), images, targets)  # type: ignore[arg-type]
        with refused("classes", "1"):
            random_logit(make(net), images, targets, 1)
        with pytest.raises(InputError, match=r"classes=2 but a target is 2. Give the number"):
            random_logit(make(net), images, targets, 2)
        with refused("seed", "-3"):
            random_logit(make(net), images, targets, 4, seed=-3)
        with pytest.raises(TargetError, match="one for each of the 3 images"):
            random_logit(make(net), images, targets[:1], 4)
