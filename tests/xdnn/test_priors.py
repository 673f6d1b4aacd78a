"""Priors on attributions: each against its formula written out, at its edges, and its errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nets import draw
from omenn.errors import InputError
from omenn.xdnn.priors import (
    PRIORS,
    consistency,
    expected_sign,
    find,
    right_reasons,
    smoothness,
    sparsity,
)
from refusals import refused


def slope(prior, a: Tensor, **context) -> Tensor:
    a = a.clone().requires_grad_()
    (found,) = torch.autograd.grad(prior(a, **context), a)
    return found


# --- sparsity


def gini(g: list[float]) -> float:
    """The double sum of the definition."""
    n, mean = len(g), sum(g) / len(g)
    return sum(abs(a - b) for a in g for b in g) / (2 * n * n * mean)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 100))
def test_sparsity_is_the_double_sum(samples: int, features: int, seed: int) -> None:
    a = draw(samples, features, seed=seed)
    g = [sum(abs(float(a[b, i])) for b in range(samples)) / samples for i in range(features)]
    assert float(sparsity(a)) == pytest.approx(-gini(g), abs=1e-12)


def test_sparsity_of_images_counts_every_entry() -> None:
    a = draw(3, 2, 4, 5)
    assert sparsity(a) == sparsity(a.flatten(1))


def test_sparsity_does_not_change_with_the_scale() -> None:
    a = draw(4, 6)
    torch.testing.assert_close(sparsity(a), sparsity(1e-6 * a))


def test_sparsity_of_zeros_is_zero_with_a_derivative_of_zero() -> None:
    a = torch.zeros(2, 5)
    assert sparsity(a) == 0
    assert torch.equal(slope(sparsity, a), torch.zeros(2, 5))
    assert torch.isfinite(slope(sparsity, torch.full((2, 5), 1e-42))).all()


def test_sparsity_has_the_derivative_of_the_double_sum() -> None:
    def written_out(a: Tensor) -> Tensor:
        g = a.abs().mean(0)
        return -(g[:, None] - g).abs().sum() / (2 * g.numel() ** 2 * g.mean())

    a = draw(3, 7)
    torch.testing.assert_close(slope(sparsity, a), slope(written_out, a))


# --- smoothness


def test_smoothness_of_images_runs_along_rows_and_columns() -> None:
    a = draw(2, 3, 4, 5)
    down = [abs(float(a[b, c, i + 1, j] - a[b, c, i, j]))
            for b in range(2) for c in range(3) for i in range(3) for j in range(5)]  # fmt: skip
    right = [abs(float(a[b, c, i, j + 1] - a[b, c, i, j]))
             for b in range(2) for c in range(3) for i in range(4) for j in range(4)]  # fmt: skip
    wanted = sum(down) / len(down) + sum(right) / len(right)
    assert float(smoothness(a)) == pytest.approx(wanted, abs=1e-12)


def test_smoothness_of_sequences_runs_along_the_tokens() -> None:
    a = draw(2, 5, 3)
    torch.testing.assert_close(smoothness(a), (a[:, 1:] - a[:, :-1]).abs().mean())
    torch.testing.assert_close(smoothness(a, dims=-1), (a[..., 1:] - a[..., :-1]).abs().mean())


def test_smoothness_of_a_single_column_is_that_of_its_rows() -> None:
    a = draw(2, 1, 4, 1)
    torch.testing.assert_close(smoothness(a), a.diff(dim=-2).abs().mean())
    assert smoothness(draw(2, 1, 1, 1)) == 0


@pytest.mark.parametrize("dims", [0, 4, -4, "x", True, (0, 1)])
def test_smoothness_has_no_such_dimension(dims) -> None:
    with refused("dims", "" if isinstance(dims, tuple) else repr(dims)):
        smoothness(draw(2, 3, 4, 5), dims=dims)


# --- right reasons


def test_right_reasons_is_the_mean_square_outside() -> None:
    a, mask = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=2) > 0
    outside = [float(v) ** 2 for v, m in zip(a.flatten(), mask.flatten(), strict=True) if not m]
    assert float(right_reasons(a, mask=mask)) == pytest.approx(sum(outside) / len(outside))


def test_right_reasons_share() -> None:
    a, mask = draw(2, 6), draw(2, 6, seed=2) > 0
    shares = [
        sum(abs(float(v)) for v, m in zip(a[b], mask[b], strict=True) if not m)
        / sum(abs(float(v)) for v in a[b])
        for b in range(2)
    ]
    assert float(right_reasons(a, mask=mask, share=True)) == pytest.approx(sum(shares) / 2)


@pytest.mark.parametrize("share", [False, True])
def test_masks_for_all_channels(share: bool) -> None:
    a, flat = draw(3, 2, 4, 5), draw(3, 4, 5, seed=2) > 0
    full = flat.unsqueeze(1).expand(3, 2, 4, 5)
    wanted = right_reasons(a, mask=full, share=share)
    for mask in (flat, flat.unsqueeze(1), flat.float(), flat.int()):
        torch.testing.assert_close(right_reasons(a, mask=mask, share=share), wanted)
    tokens, keep = draw(3, 4, 2), draw(3, 4, seed=2) > 0
    wanted = right_reasons(tokens, mask=keep.unsqueeze(-1).expand(3, 4, 2), share=share)
    for mask in (keep, keep.unsqueeze(-1)):
        torch.testing.assert_close(right_reasons(tokens, mask=mask, share=share), wanted)
    one = flat[:1]
    torch.testing.assert_close(
        right_reasons(a, mask=one), right_reasons(a, mask=one.expand(3, 4, 5))
    )


def test_right_reasons_where_all_is_allowed_or_all_is_zero() -> None:
    a = draw(2, 4)
    for share in (False, True):
        assert right_reasons(a, mask=torch.ones(2, 4), share=share) == 0
        zeros = torch.zeros(2, 4)
        assert right_reasons(zeros, mask=torch.zeros(2, 4), share=share) == 0
        found = slope(right_reasons, zeros, mask=torch.zeros(2, 4), share=share)
        assert torch.equal(found, zeros)


def test_right_reasons_pulls_at_what_lies_outside_alone() -> None:
    mask = torch.tensor([[1, 0, 1, 0]])
    found = slope(right_reasons, draw(1, 4), mask=mask)
    assert torch.equal(found != 0, mask == 0)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 4, 4), (4, 5), (3, 1, 4, 5), (2, 3, 1, 5)])
def test_a_mask_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        right_reasons(draw(2, 3, 4, 5), mask=torch.ones(shape))
    assert (caught.value.argument, caught.value.got) == ("mask", str(shape))
    assert caught.value.expected == "(2, 3, 4, 5) or (2, 1, 4, 5) or (2, 4, 5)"


def test_a_mask_that_is_none() -> None:
    a = draw(2, 4)
    with refused("mask"):
        right_reasons(a)
    with pytest.raises(InputError, match="; given were msk, target") as caught:
        right_reasons(a, msk=a > 0, target=torch.tensor([0, 1]))
    assert (caught.value.argument, caught.value.got) == ("mask", "None")
    with pytest.raises(InputError) as caught:
        right_reasons(a, mask=[[1, 0]])
    assert (caught.value.argument, caught.value.expected) == ("mask", "a tensor")
    for wrong in (2.0, -1.0, torch.nan):
        with refused("mask"):
            right_reasons(a, mask=torch.full((2, 4), wrong))


# --- consistency and expected sign


def test_consistency_is_a_share_of_both() -> None:
    a, b = draw(2, 3, 4), draw(2, 3, 4, seed=2)
    each = [
        float(((a[k] - b[k]) ** 2).sum() / ((a[k] ** 2).sum() + (b[k] ** 2).sum()))
        for k in range(2)
    ]
    assert float(consistency(a, other=b)) == pytest.approx(sum(each) / 2)
    torch.testing.assert_close(consistency(100 * a, other=100 * b), consistency(a, other=b))
    zeros = torch.zeros(2, 3)
    assert consistency(zeros, other=zeros) == 0
    assert torch.equal(slope(consistency, zeros, other=zeros), zeros)


def test_consistency_has_a_derivative_by_both() -> None:
    a, b = draw(2, 3).requires_grad_(), draw(2, 3, seed=2).requires_grad_()
    consistency(a, other=b).backward()
    assert a.grad is not None
    assert b.grad is not None
    assert b.grad.any()


def test_consistency_with_something_else() -> None:
    with refused("other", "(2, 4)"):
        consistency(draw(2, 3), other=draw(2, 4))
    with refused("other"):
        consistency(draw(2, 3))


def test_expected_sign_punishes_the_wrong_ones() -> None:
    a = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]])
    sign = torch.tensor([1, -1, 0])
    assert float(expected_sign(a, sign=sign)) == pytest.approx((4.0 + 5.0) / 6)
    assert expected_sign(a, sign=sign.expand(2, 3)) == expected_sign(a, sign=sign[None])
    wanted = torch.tensor([[0, 0, 0], [-1.0, 1.0, 0]]) / 6
    torch.testing.assert_close(slope(expected_sign, a, sign=sign), wanted)


def test_expected_sign_of_another_kind() -> None:
    a = draw(2, 3)
    with refused("sign", "(2,)"):
        expected_sign(a, sign=torch.ones(2))
    with refused("sign"):
        expected_sign(a, sign=torch.tensor([1.0, 0.5, 0.0]))
    with refused("sign"):
        expected_sign(a)


# --- all of them

CONTEXT = {"mask": torch.ones(2, 3), "other": torch.ones(2, 3), "sign": torch.ones(3)}


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior(name: str) -> None:
    """A scalar with a derivative; the context may hold what it does not use."""
    a = draw(2, 3).requires_grad_()
    value = PRIORS[name](a, target=torch.tensor([0, 1]), **CONTEXT)
    assert value.shape == ()
    assert value.requires_grad
    assert value.dtype == torch.float64
    for wrong, got in [
        (torch.ones(3), "(3,)"),
        (torch.ones(2, 3).long(), "int64"),
        (None, "No"),
    ]:
        with refused("attributions", got):
            PRIORS[name](wrong, **CONTEXT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", PRIORS)
def test_half_precision_is_summed_in_float32(name: str, dtype: torch.dtype) -> None:
    """Ranks up to 5000, and squares whose sum has no place in float16."""
    a = (100 * draw(2, 5000)).to(dtype)
    context = {"mask": a < 50, "other": a.flip(1), "sign": torch.ones(5000)}
    value = PRIORS[name](a, **context)
    wanted = PRIORS[name](a.double(), **context)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(wanted), rel=1e-4)


def test_find() -> None:
    assert find("right-reasons") is right_reasons
    own = lambda a: a.sum()  # noqa: E731
    assert find(own) is own
    with refused("prior", "sparsety"):
        find("sparsety")
    with refused("prior", "right_reasons"):
        find("right_reasons")
    with refused("prior", "3"):
        find(3)  # pyright: ignore[reportArgumentType]
