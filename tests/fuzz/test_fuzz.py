"""Random networks against an independent dense map, and against what may make no difference.

``make fuzz`` is the nightly form: 20,000 seeds. ``OMENN_FUZZ`` says how many, ``OMENN_FUZZ_FIRST``
which is the first. A failure names the seed and the blocks.
"""

from __future__ import annotations

import copy
import os
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import omenn
from fuzz.networks import WIDTH, Network, random_network
from omenn.viz import drawn

COUNT = int(os.environ.get("OMENN_FUZZ", "300"))
FIRST = int(os.environ.get("OMENN_FUZZ_FIRST", "0"))
CHUNK = 10
CLASS = 2


def explained(
    network: Network, inputs: dict[str, Tensor] | None = None, **options: Any
) -> omenn.Explanation:
    inputs = network.inputs if inputs is None else inputs
    return omenn.explain(network.forward, inputs, CLASS, **options)


def close(got: Tensor, wanted: Tensor) -> None:
    scale = 1 + float(wanted.detach().abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-7, atol=1e-8 * scale)


def sums(maps: dict[str, Tensor]) -> Tensor:
    """The sum of each sample, (B,)."""
    return torch.stack([m.flatten(1).sum(1) for m in maps.values()]).sum(0)


# --- the values ----------------------------------------------------------------------------------


def check_values(network: Network, e: omenn.Explanation) -> None:
    """Weights, constants and output are those of the dense map."""
    z, first = network.dense(), 0
    f = z.columns[..., CLASS]  # (numbers + 1, B)
    values = network.values()
    assert e.exact, e
    assert list(e.matrix) == list(values), "keys, in the order of the inputs"
    close(e.output, z.value[:, CLASS])
    close(e.bias_share, f[-1])
    for key, value in values.items():
        wanted = f[first : first + value.numel()].sum(1)
        close(e.weight[key].reshape(value.shape), wanted.reshape(value.shape))
        first += value.numel()
    close(sums(e.matrix), e.output)


def check_parts(network: Network, e: omenn.Explanation) -> None:
    """Branches that are only added: each input has what its branch adds, constants included."""
    rows = {key: w.movedim(network.axis(key), 0) for key, w in e.weight.items()}
    # What an input adds that does not act on a sample is spread over those that do.
    act = torch.stack([w.reshape(len(e.output), -1).any(1) for w in rows.values()]).all(0)
    for key, part in network.parts().items():
        close(e.matrix[key].flatten(1).sum(1)[act], part[act, CLASS])


# --- what makes no difference --------------------------------------------------------------------


def check_alone(network: Network, e: omenn.Explanation) -> None:
    """A sample alone has the map that it has in the batch, and so has a batch in another order."""
    count = len(e.output)
    one = explained(network, network.samples(torch.tensor([count - 1])))
    other = explained(network, network.samples(torch.arange(count).flip(0)))
    for key in e.matrix:
        close(one.matrix[key][0], e.matrix[key][count - 1])
        close(other.matrix[key].flip(0), e.matrix[key])


def check_order(network: Network, e: omenn.Explanation) -> None:
    """Inputs in another order: the same values under the same names; as a tuple, with None."""
    turned = dict(reversed(list(network.inputs.items())))
    other = explained(network, turned)
    assert list(other.matrix) == list(reversed(list(e.matrix)))
    names = ["nothing", *network.inputs]

    def model(_: None, *tensors: Tensor) -> Tensor:
        return network.forward(**dict(zip(network.inputs, tensors, strict=True)))

    tupled = omenn.explain(model, (None, *network.inputs.values()), CLASS)
    assert tupled.matrix[0] is None
    for key in e.matrix:
        close(other.matrix[key], e.matrix[key])
        close(tupled.matrix[names.index(key)], e.matrix[key])


def check_padded(network: Network, e: omenn.Explanation) -> None:
    """Longer samples of which nothing more counts: the same map, and nothing behind the end."""
    more = {"x": torch.randn(1, 2, WIDTH).double(), "ids": torch.ones(1, 2, dtype=torch.long)}
    longer = dict(network.inputs)
    for key, value in network.inputs.items():
        tail = torch.zeros(1, 2, dtype=torch.bool) if key == "mask" else more.get(key)
        if tail is not None:
            tail = tail.expand(len(value), *tail.shape[1:])
            longer[key] = torch.cat([value, tail], 1)
    other = explained(network, longer)
    for key, matrix in e.matrix.items():
        close(other.matrix[key][:, : matrix.shape[1]], matrix)
        assert not other.matrix[key][:, matrix.shape[1] :].any(), key


def check_beside(network: Network, e: omenn.Explanation) -> None:
    """Other outputs beside the logits, which may be what no rule knows."""

    def model(**inputs: Tensor) -> dict[str, Tensor]:
        out = network.forward(**inputs)
        x = inputs["x"].double()
        return {"spectrum": torch.linalg.svdvals(x.flatten(1)), "logits": out, "twice": out * 2}

    other = omenn.explain(model, network.inputs, CLASS, output="logits")
    for key in e.matrix:
        close(other.matrix[key], e.matrix[key])


# --- other ways to the same ----------------------------------------------------------------------


def check_copies(e: omenn.Explanation) -> None:
    """A copy is the result again, and so is what comes back from a file."""
    for twin in (copy.deepcopy(e), pickle.loads(pickle.dumps(e))):
        for key in e.matrix:
            assert torch.equal(twin.matrix[key], e.matrix[key])


def check_drawn(e: omenn.Explanation) -> None:
    """What is drawn has the sum of the matrix."""
    for key, matrix in e.matrix.items():
        total = np.nansum(drawn(e, len(matrix) - 1, input=key))
        close(torch.tensor(float(total)), matrix[-1].sum())


def check_bias(network: Network, e: omenn.Explanation) -> None:
    """Wherever the constants go, weights and sums stay."""
    even, apart = explained(network, bias="uniform"), explained(network, bias="separate")
    close(sums(even.matrix), e.output)
    close(sums(apart.matrix) + apart.bias, e.output)
    close(apart.bias, e.bias_share)
    for other in (even, apart, explained(network, bias="attention")):
        assert other.exact
        for key in e.matrix:
            close(other.weight[key], e.weight[key])


def check_differentiable(network: Network, e: omenn.Explanation) -> None:
    other = explained(network, create_graph=True)
    for key in e.matrix:
        close(other.weight[key].detach(), e.weight[key])
    close(sums(other.matrix).detach(), e.output)


def check_rows(network: Network, e: omenn.Explanation) -> None:
    """``omenn.rows``, and with one input ``omenn.operator``, have the same weights."""
    rows = omenn.rows(network.forward, network.inputs, [0, CLASS])
    for key in e.matrix:
        if network.axis(key) == 0:
            close(rows.weight[key][:, 1], e.weight[key])
            close(rows.bias[key][:, 1], e.bias[key])
    if len(network.inputs) == 1:
        op = omenn.operator(network.forward, network.inputs)
        dense = op.to_dense().reshape(*e.output.shape, WIDTH, -1)[:, CLASS].sum(0)
        close(dense.reshape(e.weight["x"].shape), e.weight["x"])
        close(op.constant.reshape(-1, WIDTH)[:, CLASS], e.bias_share)


# --- what the caller owns ------------------------------------------------------------------------


class Failing(nn.Module):
    """A model that writes into its state, draws random numbers, and fails after a block."""

    calls: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.fails = network, True
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, **inputs: Tensor) -> Tensor:
        self.calls += 1
        self.calls[0] = torch.rand(())
        for x in inputs.values():
            x.mul_(1)
        out = self.network.forward(**inputs)
        if self.fails:
            raise KeyError("in the middle")
        return out


def check_untouched(network: Network) -> None:
    """A model that fails is as it was before, and so is all that it was given."""
    model, noise = Failing(network).eval(), torch.get_rng_state()
    before = {k: v.clone() for k, v in network.inputs.items()}
    with pytest.raises((KeyError, omenn.OmennError)):
        omenn.explain(model, network.inputs, CLASS)
    assert not model.calls.any()
    assert torch.equal(torch.get_rng_state(), noise)
    for key, value in network.inputs.items():
        assert torch.equal(value, before[key])
        assert not value.requires_grad


def check(seed: int) -> None:
    network = random_network(seed)
    before = {k: v.clone() for k, v in network.inputs.items()}
    noise = torch.get_rng_state()
    e = explained(network)
    assert torch.equal(torch.get_rng_state(), noise), "random numbers were drawn"
    check_values(network, e)
    check_alone(network, e)
    if network.late:
        check_parts(network, e)
    if network.padded and not (network.late and "ids" in network.inputs):
        check_padded(network, e)
    # The others take turns.
    turns = [
        lambda: check_order(network, e),
        lambda: check_bias(network, e),
        lambda: check_order(network, e),
        lambda: check_rows(network, e),
        lambda: check_beside(network, e),
        lambda: check_differentiable(network, e),
        lambda: check_untouched(network),
        lambda: (check_drawn(e), check_copies(e)),
    ]
    turns[seed % len(turns)]()
    for key, value in network.inputs.items():
        assert torch.equal(value, before[key]), f"input {key!r} was written to"
        assert not value.requires_grad


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, CHUNK))
def test_random_networks(first: int) -> None:
    failed = []
    for seed in range(first, min(first + CHUNK, FIRST + COUNT)):
        try:
            check(seed)
        except (AssertionError, omenn.OmennError) as error:
            names = ", ".join(random_network(seed).names)
            failed.append(f"seed {seed} ({names}): {type(error).__name__}: {str(error)[:300]}")
    assert not failed, "\n".join(failed)
