"""``omenn.explain``: targets, inputs, outputs, precision, and what it leaves untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import omenn
from nets.small import IMAGE, ROWS, Two, convnet, mlp, sums_up
from opcases.case import draw
from opcases.linear import seeded

X = ROWS


# --- targets ---------------------------------------------------------------------------------


def test_no_target_is_the_class_with_the_largest_logit() -> None:
    net = mlp()
    e = omenn.explain(net, X)
    assert torch.equal(e.target, net(X).argmax(1))
    torch.testing.assert_close(e.output, net(X).max(1).values.detach())
    sums_up(e)


def test_integer_and_negative_targets() -> None:
    net = mlp()
    e = omenn.explain(net, X, 2)
    assert e.target.tolist() == [2, 2, 2]
    assert torch.equal(omenn.explain(net, X, -1).target, torch.tensor([4, 4, 4]))
    torch.testing.assert_close(e.output, net(X)[:, 2].detach())
    sums_up(e)


def test_a_target_for_each_sample() -> None:
    net, classes = mlp(), torch.tensor([3, 0, 1])
    e = omenn.explain(net, X, classes)
    assert torch.equal(e.target, classes)
    for k, c in enumerate(classes.tolist()):
        torch.testing.assert_close(e.matrix[k], omenn.explain(net, X, c).matrix[k])
    sums_up(e)


@pytest.mark.parametrize("target", [torch.tensor(2), torch.tensor([2]), torch.tensor([2] * 3)])
def test_tensor_targets_of_every_shape(target: Tensor) -> None:
    torch.testing.assert_close(
        omenn.explain(mlp(), X, target).matrix, omenn.explain(mlp(), X, 2).matrix
    )


def test_contrast_is_the_difference() -> None:
    net = mlp()
    e = omenn.explain(net, X, omenn.Contrast(3, 1))
    a, b = omenn.explain(net, X, 3), omenn.explain(net, X, 1)
    torch.testing.assert_close(e.matrix, a.matrix - b.matrix)
    torch.testing.assert_close(e.weight, a.weight - b.weight)
    torch.testing.assert_close(e.output, a.output - b.output)
    sums_up(e)


def test_contrast_of_tensors() -> None:
    a, b = torch.tensor([0, 1, 2]), torch.tensor([4, 3, 3])
    e = omenn.explain(mlp(), X, omenn.Contrast(a, b))
    out = mlp()(X).detach()
    torch.testing.assert_close(
        e.output, (out.gather(1, a[:, None]) - out.gather(1, b[:, None]))[:, 0]
    )
    sums_up(e)


def test_callable_target() -> None:
    e = omenn.explain(mlp(), X, lambda y: y[:, 1] - 0.5 * y[:, 2] + 3)
    assert e.target.tolist() == [-1, -1, -1]
    out = mlp()(X).detach()
    torch.testing.assert_close(e.output, out[:, 1] - 0.5 * out[:, 2] + 3)
    sums_up(e)


def test_callable_that_returns_one_number_explains_the_batch_as_one() -> None:
    e = omenn.explain(mlp(), X, lambda y: y[:, 1].sum())
    assert e.output.shape == (1,)
    assert e.matrix.shape == (1, 3)  # rows are the locations now, as the nodes of a graph
    each = omenn.explain(mlp(), X, 1)
    torch.testing.assert_close(e.contribution, each.contribution)
    sums_up(e)


def test_one_logit_per_sample() -> None:
    net = seeded(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)))
    e = omenn.explain(net, X)
    torch.testing.assert_close(e.output, net(X).detach())
    sums_up(e)


def test_log_softmax_head_is_explained() -> None:
    net = seeded(nn.Sequential(nn.Linear(4, 5), nn.LogSoftmax(-1)))
    sums_up(omenn.explain(net, X, 1))


# --- inputs ----------------------------------------------------------------------------------


LEFT, RIGHT = draw(2, 4), draw(2, 7, 3)


class Sequences(Two):
    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(left, right.mean(1), scale)


def test_tuple_of_inputs() -> None:
    e = omenn.explain(seeded(Sequences()), (LEFT, RIGHT), 1)
    assert isinstance(e.weight, tuple)
    assert [w.shape for w in e.weight] == [(2, 4), (2, 7, 3)]
    assert [m.shape for m in e.matrix] == [(2, 4), (2, 7)]
    assert [b.shape for b in e.bias] == [(2, 4), (2, 7)]
    sums_up(e)


def test_dict_of_inputs() -> None:
    e = omenn.explain(seeded(Sequences()), {"right": RIGHT, "left": LEFT}, 1)
    assert list(e.weight) == ["right", "left"]
    by_tuple = omenn.explain(seeded(Sequences()), (LEFT, RIGHT), 1)
    torch.testing.assert_close(e.contribution["left"], by_tuple.contribution[0])
    torch.testing.assert_close(e.matrix["right"], by_tuple.matrix[1])
    sums_up(e)


def test_other_arguments_are_passed_on() -> None:
    e = omenn.explain(seeded(Sequences()), {"left": LEFT, "right": RIGHT, "scale": 2.0}, 0)
    once = omenn.explain(seeded(Sequences()), (LEFT, RIGHT, 1.0), 0)
    torch.testing.assert_close(e.output, 2 * once.output)
    assert list(e.weight) == ["left", "right"]
    sums_up(e)
    sums_up(once)


def test_constant_of_one_input_goes_there_and_shared_ones_are_split() -> None:
    def model(left: Tensor, right: Tensor) -> Tensor:
        return (left + 1.0).sum(1) + (right.sum(2) + 2.0).sum(1)

    e = omenn.explain(model, (LEFT, RIGHT), lambda y: y)
    torch.testing.assert_close(e.bias[0], torch.ones(2, 4).double())
    torch.testing.assert_close(e.bias[1], torch.full((2, 7), 2.0).double())
    e = omenn.explain(lambda a, b: a.mean(1) + b.mean((1, 2)) + 6.0, (LEFT, RIGHT), lambda y: y)
    torch.testing.assert_close(e.bias[0].sum(1), torch.full((2,), 3.0).double())
    torch.testing.assert_close(e.bias[1].sum(1), torch.full((2,), 3.0).double())


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(9, 4), nn.GRU(4, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        if mask is not None:
            x = x * mask[..., None]
        return self.head(self.rnn(x)[0].mean(1))


IDS = torch.tensor([[1, 5, 2, 8, 0], [3, 3, 7, 4, 6]])


def test_integer_ids_are_explained_at_their_embedding() -> None:
    net = seeded(Words())
    e = omenn.explain(net, IDS, 2)
    assert e.weight.shape == (2, 5, 4)
    assert e.matrix.shape == (2, 5)
    torch.testing.assert_close(e.inputs, net.embed(IDS).detach())
    torch.testing.assert_close(e.output, net(IDS)[:, 2].detach())
    sums_up(e)


def test_ids_with_a_mask() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    e = omenn.explain(seeded(Words()), {"ids": IDS, "mask": mask}, 0)
    assert not e.contribution["ids"][0, 3:].any()
    sums_up(e)


def test_ids_of_two_embeddings() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word, self.kind, self.head = (
                nn.Embedding(9, 4),
                nn.Embedding(3, 4),
                nn.Linear(4, 2),
            )

        def forward(self, words: Tensor, kinds: Tensor) -> Tensor:
            return self.head((self.word(words) + self.kind(kinds)).mean(1))

    e = omenn.explain(seeded(Both()), (IDS, IDS % 3), 1)
    assert len(e.weight) == 2
    sums_up(e)
    assert omenn.explain(seeded(Both()), {"words": IDS, "kinds": IDS % 3}, 1).exact


def test_image_sequence_and_table_have_their_locations() -> None:
    assert omenn.explain(convnet(), IMAGE, 0).matrix.shape == (2, 6, 6)
    sequence = seeded(nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(20, 2)))
    assert omenn.explain(sequence, draw(2, 5, 4), 0).matrix.shape == (2, 5)
    assert omenn.explain(mlp(), X, 0).matrix.shape == (3, 4)
    video = seeded(nn.Sequential(nn.Conv3d(2, 2, 2), nn.Flatten(), nn.Linear(16, 2)))
    assert omenn.explain(video, draw(1, 2, 3, 3, 3), 0).matrix.shape == (1, 3, 3, 3)


def test_fields_agree_with_one_another() -> None:
    e = omenn.explain(convnet(), IMAGE, 1)
    torch.testing.assert_close(e.contribution, e.weight * IMAGE)
    torch.testing.assert_close(e.matrix, e.contribution.sum(1) + e.bias)
    torch.testing.assert_close(e.inputs, IMAGE)
    torch.testing.assert_close(e.bias_share, e.bias.sum((1, 2)))
    torch.testing.assert_close(e.magnitude, e.matrix.abs().sum((1, 2)))
    assert e.residual.abs().max() <= 1e-12
    assert e.residual.dtype == torch.float64
    assert repr(e).startswith("Explanation(target=[1, 1], output=[")
    assert repr(e).endswith("exact)")


def test_a_function_can_be_explained() -> None:
    net = mlp()
    e = omenn.explain(lambda x: net(2 * x), X, 1)
    torch.testing.assert_close(e.contribution, omenn.explain(net, 2 * X, 1).contribution)
    sums_up(e)


# --- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)]
)
@pytest.mark.parametrize("make", [mlp, convnet])
def test_precision(make, dtype: torch.dtype, tolerance: float) -> None:
    net, x = make().to(dtype), (X if make is mlp else IMAGE).to(dtype)
    e = omenn.explain(net, x, 1)
    assert e.exact
    assert (e.residual.abs() <= tolerance * (1 + e.magnitude)).all()
    assert e.weight.dtype == e.output.dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert e.matrix.dtype == e.contribution.dtype == e.bias.dtype == wide
    assert omenn.certify(net, x, 1).exact


def test_autocast() -> None:
    net, x = mlp().float(), X.float()
    with torch.autocast("cpu", torch.bfloat16):
        e = omenn.explain(net, x, 1)
    assert e.exact
