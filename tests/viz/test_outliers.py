"""Outliers: cut at a bound of each map, and given back sign by sign so that the sum stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from omenn.viz.outliers import clamp, given_back, mad, quantiles
from refusals import refused

KINDS = ("noise", "spikes", "sparse", "constant", "zeros", "positive", "negative", "cancelling")


def maps_of(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Maps of every sort that can embarrass a rule of sharing."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=shape)
    if kind == "spikes":
        noise += np.where(rng.random(shape) < 0.02, rng.normal(size=shape) * 1e6, 0)
    elif kind == "sparse":
        noise *= rng.random(shape) < 0.01
    elif kind == "constant":
        noise = np.full(shape, noise.flat[0])
    elif kind == "zeros":
        noise = np.zeros(shape)
    elif kind in ("positive", "negative"):
        noise = np.abs(noise) * (1 if kind == "positive" else -1)
    elif kind == "cancelling":
        noise -= noise.reshape(shape[0], -1).mean(1).reshape(-1, *[1] * (len(shape) - 1))
    return torch.from_numpy(noise)


shapes = st.one_of(
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
)
steps = st.one_of(
    st.floats(0, 0.49).map(lambda q: lambda x, keep=True: clamp(x, q, keep)),
    st.floats(0.1, 6).map(lambda k: lambda x, keep=True: mad(x, k, keep)),
)
Step = Callable[..., Tensor]


def missed(before: Tensor, after: Tensor) -> Tensor:
    """How far the sums of samples are apart, relative to Σ|x|."""
    x, y = before.double().flatten(1), after.double().flatten(1)
    return (y.sum(1) - x.sum(1)).abs() / x.abs().sum(1).clamp(min=1e-300)


class TestTheSum:
    @given(st.sampled_from(KINDS), shapes, st.integers(0, 2**16), steps)
    def test_it_stays_in_every_sample(
        self, kind: str, shape: tuple[int, ...], seed: int, step: Step
    ) -> None:
        x = maps_of(kind, shape, seed)
        y = step(x)
        assert y.shape == x.shape
        assert bool(torch.isfinite(y).all())
        assert float(missed(x, y).max()) < 1e-12

    @given(st.sampled_from(KINDS), shapes, st.integers(0, 2**16), steps)
    def test_it_stays_in_each_sign_unless_that_sign_is_gone(
        self, kind: str, shape: tuple[int, ...], seed: int, step: Step
    ) -> None:
        x = maps_of(kind, shape, seed).flatten(1)
        y, cut = step(x), step(x, False)
        for sign in (1, -1):
            was = (sign * x).clamp(min=0).sum(1)
            left = (sign * cut).clamp(min=0).sum(1)
            both = ((cut > 0).any(1) | (x <= 0).all(1)) & ((cut < 0).any(1) | (x >= 0).all(1))
            now = (sign * y).clamp(min=0).sum(1)
            ok = ((now - was).abs() <= 1e-12 * x.abs().sum(1)) | ~both | (left < 1e-12 * was)
            assert bool(ok.all())
        assert bool((y.abs().sum(1) <= x.abs().sum(1) * (1 + 1e-12)).all())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_other_precisions_lose_only_their_rounding(self, dtype: torch.dtype) -> None:
        x = maps_of("noise", (3, 16, 16), 0).to(dtype)
        y = clamp(x, 0.05)
        assert y.dtype == dtype
        assert float(missed(x, y).max()) < 4 * torch.finfo(dtype).eps

    def test_the_plain_cut_does_not_keep_it(self) -> None:
        x = maps_of("spikes", (1, 20, 20), 0)
        assert float(missed(x, clamp(x, keep_sum=False)).max()) > 0.1


class TestGivenBack:
    def test_by_hand(self) -> None:
        before = torch.tensor([[10.0, 2.0, 1.0, 0.0, -1.0, -5.0]], dtype=torch.float64)
        after = before.clamp(-2, 3)
        # positive mass 13, 6 left; negative 6, 3 left
        factors = torch.tensor([13 / 6] * 4 + [2.0] * 2, dtype=torch.float64)
        assert torch.allclose(given_back(before, after), after * factors, rtol=1e-15)

    def test_an_outlier_stands_as_far_above_the_rest_as_in_the_plain_cut(self) -> None:
        x = maps_of("spikes", (1, 30, 30), 3)
        kept, plain = clamp(x, 0.03), clamp(x, 0.03, keep_sum=False)  # 2 % are spikes
        for sign in (1, -1):
            side = sign * plain > 0
            factor = kept[side] / plain[side]
            assert torch.allclose(factor, factor[0].expand_as(factor), rtol=1e-12)
            height = (sign * kept[side]).max() / (sign * kept[side]).median()
            raw = (sign * x[sign * x > 0]).max() / (sign * x[sign * x > 0]).median()
            assert height < raw / 100

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_a_lone_spike_on_zeros_is_spread_evenly(self, sign: float) -> None:
        x = torch.zeros(1, 20, 20, dtype=torch.float64)
        x[0, 3, 4] = sign * 8
        assert torch.allclose(clamp(x, 0.01), torch.full_like(x, sign * 8 / 400))
        assert torch.equal(clamp(x, 0.01, keep_sum=False), torch.zeros_like(x))

    def test_a_sign_that_is_gone_leaves_the_other_its_own_sum(self) -> None:
        x = -torch.ones(1, 200, dtype=torch.float64)
        x[0, 0] = 50
        y = clamp(x, 0.01)  # all −1 after the cut: 50 has no positive entry left to go to
        assert torch.allclose(y, torch.full_like(y, -199 / 200 + 50 / 200))

    @pytest.mark.parametrize("step", [clamp, mad])
    @pytest.mark.parametrize("value", [0.0, 2.5, -1e-300, 1e300])
    def test_constant_maps_stay_to_the_bit(self, step: Step, value: float) -> None:
        x = torch.full((2, 5, 5), value, dtype=torch.float64)
        assert torch.equal(step(x), x)

    def test_where_nothing_is_cut_nothing_changes(self) -> None:
        x = maps_of("noise", (2, 7, 7), 0)
        assert torch.equal(clamp(x, 0.0), x)
        assert torch.equal(mad(x, 1e6), x)

    def test_signs_order_and_zeros_stay(self) -> None:
        x = maps_of("noise", (1, 400), 1)
        x[0, ::7] = 0
        y = clamp(x, 0.1)
        assert torch.equal(y.sign(), x.sign())
        assert bool((y[0, x[0].argsort()].diff() >= -1e-15).all())

    @pytest.mark.parametrize("step", [clamp, mad])
    def test_scale_and_sign_pass_through(self, step: Step) -> None:
        x = maps_of("spikes", (2, 9, 9), 5)
        assert torch.allclose(step(-3 * x), -3 * step(x), rtol=1e-12)


class TestClamp:
    def test_the_plain_form_is_numpy_clip_at_its_quantiles(self) -> None:
        x = maps_of("noise", (3, 8, 9), 0)
        for q in (0.0, 0.01, 0.2, 0.49):
            for one, cut in zip(x.numpy(), clamp(x, q, keep_sum=False).numpy(), strict=True):
                low, high = np.quantile(one, [q, 1 - q])
                assert np.allclose(cut, one.clip(low, high), rtol=1e-12, atol=1e-14)

    @given(st.integers(1, 60), st.integers(0, 2**16), st.floats(0, 1))
    def test_quantiles_are_those_of_numpy(self, count: int, seed: int, share: float) -> None:
        x = maps_of("noise", (2, count), seed)
        assert np.allclose(
            quantiles(x, share)[0].squeeze(1).numpy(),
            np.quantile(x.numpy(), share, axis=1),
            atol=1e-12,
        )

    @pytest.mark.parametrize("keep", [True, False])
    def test_twice_is_once_where_the_quantile_is_an_entry(self, keep: bool) -> None:
        x = maps_of("spikes", (2, 101), 0)  # 0.01 · 100 is a rank
        once = clamp(x, 0.01, keep)
        assert torch.allclose(clamp(once, 0.01, keep), once, rtol=1e-12)

    def test_one_map_without_samples(self) -> None:
        x = maps_of("spikes", (1, 12, 13), 0)
        assert torch.equal(clamp(x[0], batched=False), clamp(x)[0])
        rows = clamp(x[0])  # else the first axis is that of samples
        assert not torch.equal(rows, clamp(x)[0])


class TestMad:
    def test_by_hand(self) -> None:
        x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 100.0]], dtype=torch.float64)
        cut = mad(x, 2.0, keep_sum=False)  # median 3, MAD 1
        assert torch.allclose(cut[0], torch.tensor([1, 2, 3, 4, 3 + 2 * 1.4826]).double())

    def test_more_than_half_of_the_entries_equal(self) -> None:
        x = torch.zeros(1, 100, dtype=torch.float64)
        x[0, :40] = torch.linspace(-1, 1, 40)
        x[0, 0] = 500
        cut = mad(x, 2.5, keep_sum=False)
        bound = 2.5 * 1.2533 * float(x.abs().mean())
        assert float(cut.max()) == pytest.approx(bound)
        assert torch.equal(cut[0, 1:], x[0, 1:])

    def test_the_plain_form_twice_is_once(self) -> None:
        x = maps_of("spikes", (2, 9, 9), 2)
        once = mad(x, 2.5, keep_sum=False)
        assert torch.allclose(mad(once, 2.5, keep_sum=False), once, rtol=1e-12)


class TestAround:
    @pytest.mark.parametrize("step", [clamp, mad])
    @pytest.mark.parametrize("keep", [True, False])
    def test_a_sample_alone_is_what_it_is_in_a_batch(self, step: Step, keep: bool) -> None:
        x = torch.cat([maps_of(kind, (1, 6, 7), 0) for kind in KINDS])
        for k, alone in enumerate(x):
            one = step(alone[None], keep_sum=keep)[0]
            assert torch.allclose(step(x, keep_sum=keep)[k], one, rtol=1e-13, atol=0)

    @pytest.mark.parametrize("step", [clamp, mad])
    def test_what_was_given_is_not_touched(self, step: Step) -> None:
        x = maps_of("spikes", (2, 6, 6), 0).requires_grad_()
        before = x.detach().clone()
        y = step(x)
        assert torch.equal(x.detach(), before)
        assert not y.requires_grad
        assert torch.is_grad_enabled()
        constant = torch.ones(1, 4)
        clamp(constant, 0.0)[0, 0] = 9
        assert float(constant[0, 0]) == 1

    @pytest.mark.parametrize(
        ("call", "argument", "got"),
        [
            (lambda x: clamp(x, 0.5), "q", "0.5"),
            (lambda x: clamp(x, -0.1), "q", "-0.1"),
            (lambda x: clamp(x, float("nan")), "q", "nan"),
            (lambda x: clamp(x, "1"), "q", "'1'"),
            (lambda x: mad(x, 0), "k", "0"),
            (lambda x: mad(x, float("inf")), "k", "inf"),
            (lambda x: clamp(x[0, 0]), "the map", "(5,)"),
            (lambda x: clamp(x.long()), "the map", "torch.int64"),
            (lambda x: clamp(x.numpy()), "the map", "ndarray"),
            (lambda x: clamp(x[:, :0]), "the map", "(2, 0, 5)"),
            (lambda x: clamp(x / 0), "the map", "50 values"),
            (lambda x: mad(x * float("nan")), "the map", "50 values"),
        ],
    )
    def test_mistakes(self, call: Step, argument: str, got: str) -> None:
        with refused(argument, got):
            call(torch.zeros(2, 5, 5))
