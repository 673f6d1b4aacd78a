"""Results that were once wrong without a word: rules that lose a path, places that are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from omenn.errors import UnsupportedOperator
from opcases.case import draw
from opcases.linear import seeded

IMAGE = draw(1, 3, 4, 4)
ROWS = draw(3, 5, 4)
MEAN, VAR = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
CONV = seeded(nn.Conv2d(3, 4, 3, padding=1))
CONDITION = seeded(nn.Sequential(nn.Flatten(), nn.Linear(48, 8)))
LINEAR = seeded(nn.Linear(4, 7))
WEIGHT = draw(7, 4)

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]

NORMS: dict[str, tuple[Norm, Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "batch": (
        lambda x, g, b: F.batch_norm(x, MEAN, VAR, g, b),
        lambda x: F.batch_norm(x, MEAN, VAR),
        (4, 1, 1),
    ),
    "instance": (
        lambda x, g, b: F.instance_norm(x, weight=g, bias=b),
        F.instance_norm,
        (4, 1, 1),
    ),
    "instance with statistics": (
        lambda x, g, b: F.instance_norm(x, MEAN, VAR, g, b, use_input_stats=False),
        lambda x: F.batch_norm(x, MEAN, VAR),
        (4, 1, 1),
    ),
    "group": (
        lambda x, g, b: F.group_norm(x, 2, g, b),
        lambda x: F.group_norm(x, 2),
        (4, 1, 1),
    ),
    "layer": (
        lambda x, g, b: F.layer_norm(x, [4], g, b),
        lambda x: F.layer_norm(x, [4]),
        (4,),
    ),
    "rms": (
        lambda x, g, b: F.rms_norm(x, [4], g) + b,
        lambda x: F.rms_norm(x, [4]),
        (4,),
    ),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_condition_of_a_norm_is_explained(name: str, create_graph: bool) -> None:
    """Scale and shift made from the input: as if the norm were written out."""
    fused, plain, shape = NORMS[name]

    def at_once(x: Tensor) -> Tensor:
        g, b = CONDITION(x).chunk(2, 1)
        return fused(CONV(x), g[0], b[0]).relu().sum((2, 3))

    def in_parts(x: Tensor) -> Tensor:
        g, b = CONDITION(x).chunk(2, 1)
        return (plain(CONV(x)) * g.reshape(shape) + b.reshape(shape)).relu().sum((2, 3))

    got = omenn.explain(at_once, IMAGE, 1, create_graph=create_graph)
    wanted = omenn.explain(in_parts, IMAGE, 1, create_graph=create_graph)
    assert got.exact
    torch.testing.assert_close(got.matrix, wanted.matrix, rtol=1e-11, atol=1e-13)


def test_shift_of_a_constant_is_explained() -> None:
    """A norm of a constant whose shift alone depends on the input."""
    constant = draw(1, 4, 4)

    def at_once(x: Tensor) -> Tensor:
        return F.layer_norm(constant, [4], None, CONDITION(x)[0, :4]).sum(1)

    e = omenn.explain(at_once, IMAGE, 1)
    assert e.exact
    bare = omenn.explain(lambda x: 4 * CONDITION(x)[:, :4], IMAGE, 1)
    torch.testing.assert_close(e.weight, bare.weight, rtol=1e-12, atol=1e-14)


def test_bias_of_a_bilinear_form_is_explained() -> None:
    weight = draw(2, 4, 4)

    def form(x: Tensor) -> Tensor:
        return F.bilinear(x, x.relu(), weight, x[0, :2])

    def in_parts(x: Tensor) -> Tensor:
        return F.bilinear(x, x.relu(), weight) + x[0, :2]

    x = draw(1, 4)
    got, wanted = omenn.explain(form, x, 1), omenn.explain(in_parts, x, 1)
    assert got.exact
    torch.testing.assert_close(got.matrix, wanted.matrix, rtol=1e-12, atol=1e-14)


def test_running_statistics_of_the_input_are_refused() -> None:
    def net(x: Tensor) -> Tensor:
        return F.batch_norm(x, x.mean((0, 2, 3)), torch.ones(3, dtype=torch.float64)).sum((2, 3))

    with pytest.raises(UnsupportedOperator, match="depends on the input"):
        omenn.explain(net, IMAGE, 0)


# --- writes ----------------------------------------------------------------------------------


def index(*values: int) -> Tensor:
    return torch.tensor(values)


def reverse_set(out: Tensor, y: Tensor) -> Tensor:
    out[:, index(4, 3, 2, 1, 0)] = y
    return out


def strided_set(out: Tensor, y: Tensor) -> Tensor:
    out[:, [4, 3, 2, 1, 0], :2] = y[..., :2]
    out[:, [4, 3, 2, 1, 0], 2:] = y[..., 2:]
    return out


BACK = index(4, 3, 2, 1, 0)
WRITES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "setitem": reverse_set,
    "two halves": strided_set,
    "index_copy": lambda out, y: out.index_copy(1, BACK, y),
    "index_copy_": lambda out, y: out.index_copy_(1, BACK, y),
    "scatter": lambda out, y: out.scatter(1, BACK.reshape(1, -1, 1).expand(3, 5, 7), y),
    "index_put": lambda out, y: out.index_put((torch.arange(3)[:, None], BACK[None]), y),
}


@pytest.mark.parametrize("target", ["constant", "carried"])
@pytest.mark.parametrize("name", WRITES)
def test_written_rows_keep_their_own_place(name: str, target: str) -> None:
    """What goes to the row 4 − i comes from the token i, and so does a constant added to it."""

    def net(x: Tensor) -> Tensor:
        out = torch.zeros(3, 5, 7, dtype=torch.float64) if target == "constant" else LINEAR(x) * 0
        return WRITES[name](out, F.linear(x, WEIGHT)) + 1

    e = omenn.explain(net, ROWS, lambda y: y[:, 4, 0])
    assert e.exact
    assert e.located == 1.0
    wanted = torch.zeros(3, 5, dtype=torch.float64)
    wanted[:, 0] = 1
    torch.testing.assert_close(e.bias, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("count", [5, 6, 7, 8, 15])
def test_masked_rows_stay_with_their_samples(count: int) -> None:
    """As many rows as features: no size may be taken for the dimension of the samples."""
    mask = torch.arange(15) % 15 < count

    def net(x: Tensor) -> Tensor:
        out = torch.zeros(15, 7, dtype=torch.float64)
        out[mask] = F.relu(LINEAR(x.reshape(15, 4)[mask]))
        return (out + 1).reshape(3, 5, 7).sum(1)

    e = omenn.explain(net, ROWS, 1)
    assert e.exact
    torch.testing.assert_close(e.matrix.sum(1), e.output, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["setitem", "index_add", "index_put", "scatter_add"])
def test_samples_need_not_come_first(name: str) -> None:
    """Time before samples, as many steps as samples: rows say nothing of the sample."""
    steps = index(0, 2, 1)

    def net(x: Tensor) -> Tensor:
        y, out = F.relu(LINEAR(x[:, :3])).transpose(0, 1), torch.zeros(6, 3, 7, dtype=torch.float64)
        if name == "setitem":
            out[steps] = y
        elif name == "index_add":
            out = out.index_add(0, steps, y)
        elif name == "index_put":
            out = out.index_put((steps,), y, accumulate=True)
        else:
            out = out.scatter_add(0, steps.reshape(3, 1, 1).expand(3, 3, 7), y)
        return (out + 1).sum(0)

    e = omenn.explain(net, ROWS, 1)
    assert e.exact
    torch.testing.assert_close(e.matrix.sum(1), e.output, rtol=1e-12, atol=1e-13)


def test_sums_of_written_rows_are_not_located() -> None:
    def net(x: Tensor) -> Tensor:
        out = torch.zeros(3, 2, 7, dtype=torch.float64)
        return out.index_add(1, index(0, 0, 1, 1, 1), F.linear(x, WEIGHT)) + 1

    e = omenn.explain(net, ROWS, lambda y: y[:, 0, 0])
    assert e.exact
    assert e.located == 0.0
    torch.testing.assert_close(
        e.bias.sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )


def test_copied_part_has_the_place_of_its_source() -> None:
    def net(x: Tensor) -> Tensor:
        out = torch.empty(3, 5, 4, dtype=torch.float64).copy_(x.flip(1))
        return out + 1

    e = omenn.explain(net, ROWS, lambda y: y[:, 4, 0])
    wanted = torch.zeros(3, 5, dtype=torch.float64)
    wanted[:, 0] = 1
    torch.testing.assert_close(e.bias, wanted, rtol=1e-12, atol=1e-14)


# --- stacks and windows ------------------------------------------------------------------------


def test_hstack_keeps_the_place_of_its_parts() -> None:
    e = omenn.explain(lambda x: torch.hstack([x[:, 3:], x[:, :3]]) + 1, ROWS, lambda y: y[:, 0, 0])
    wanted = torch.zeros(3, 5, dtype=torch.float64)
    wanted[:, 3] = 1
    torch.testing.assert_close(e.bias, wanted, rtol=1e-12, atol=1e-14)
    assert e.located == 1.0


def test_dstack_of_tables_keeps_the_samples() -> None:
    e = omenn.explain(lambda x: (torch.dstack([x, 2 * x]) + 1).sum(2), ROWS[:, 0], 1)
    torch.testing.assert_close(e.matrix.sum(1), e.output, rtol=1e-12, atol=1e-13)


WINDOWS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], tuple[int, int]]] = {
    "patches": (lambda x: F.unfold(x, 2, stride=2), (3, 3), (3, 3)),
    "padded": (lambda x: F.unfold(x, 3, padding=1), (0, 0), (0, 0)),
    "one image": (lambda x: F.unfold(x[0], (1, 2), dilation=2)[None], (5, 7), (3, 3)),
    "view": (lambda x: x.unfold(2, 2, 2), (0, 1, 2, 1), (3, 2)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_keep_their_cells(name: str) -> None:
    unfold, at, (row, column) = WINDOWS[name]
    e = omenn.explain(lambda x: unfold(x) + 1, IMAGE, lambda y: y[(slice(None), *at)])
    wanted = torch.zeros(1, 4, 4, dtype=torch.float64)
    wanted[:, row, column] = 1
    torch.testing.assert_close(e.bias, wanted, rtol=1e-12, atol=1e-14)
    assert e.located == 1.0


def test_constants_made_from_the_input_are_named() -> None:
    net = seeded(nn.Sequential(nn.Linear(4, 5), nn.LogSoftmax(1)))
    e = omenn.explain(net, ROWS[:, 0], lambda out: out[:, 1])
    assert e.exact
    assert e.frozen_constants == ("1",)


def test_constant_weighed_by_the_input_is_named() -> None:
    """(1 − ⟦w⟧) a + ⟦w⟧ b: for a constant b the summand ⟦w⟧ b is one, but not for all inputs."""

    def net(x: Tensor) -> Tensor:
        return torch.lerp(LINEAR(x[:, 0]), torch.ones(3, 7, dtype=torch.float64), LINEAR(x[:, 1]))

    e = omenn.explain(net, ROWS, 1)
    assert e.exact
    assert len(e.frozen_constants) == 1


@pytest.mark.parametrize("bias", ["spatial", "uniform", "separate"])
def test_constants_of_no_tokens(bias: str) -> None:
    """A branch that is empty for this input adds nothing, and is no error."""
    layer = nn.Linear(4, 4).double()

    def model(x: Tensor) -> Tensor:
        return torch.cat([layer(x[:, :0]), torch.sigmoid(x[:, :0]), x], 1).sum(1)

    x = draw(2, 3, 4)
    e = omenn.explain(model, x, 1, bias=bias)
    assert e.exact
    torch.testing.assert_close(e.weight, torch.eye(4).double()[1].expand(2, 3, 4))
    torch.testing.assert_close(e.bias_share, torch.zeros(2).double())


@pytest.mark.parametrize("biased", [False, True])
def test_a_linear_layer_with_a_single_row(biased: bool) -> None:
    """``F.linear`` takes a vector as its weight, and the output has a dimension less."""
    weight, bias = draw(4, seed=1), draw(2, seed=2)

    def model(x: Tensor) -> Tensor:
        rows = [F.linear(x, weight, bias[k] if biased else None) for k in range(2)]
        return torch.stack([r.sum(1) for r in rows], 1)

    x = draw(3, 2, 4)
    e = omenn.explain(model, x, 1)
    assert e.exact
    torch.testing.assert_close(e.weight, weight.expand(3, 2, 4))
    torch.testing.assert_close(e.bias_share, (2 * biased * bias[1]).expand(3))
