"""Random networks against an independent dense map, and against what may make no difference.

``OMENN_FUZZ=20000 python -m pytest tests/fuzz`` is the nightly form; ``OMENN_FUZZ_FIRST`` is the
first seed. A failure names the seed and the blocks.
"""

from __future__ import annotations

import copy
import os
import pickle

import pytest
import torch
from torch import Tensor

import omenn
from fuzz.networks import WIDTH, Network, random_network

COUNT = int(os.environ.get("OMENN_FUZZ", "300"))
FIRST = int(os.environ.get("OMENN_FUZZ_FIRST", "0"))
CHUNK = 10
CLASS = 2


def explained(network: Network, inputs: dict[str, Tensor] | None = None) -> omenn.Explanation:
    return omenn.explain(network.forward, network.inputs if inputs is None else inputs, CLASS)


def close(got: Tensor, wanted: Tensor) -> None:
    scale = 1 + float(wanted.abs().max()) if wanted.numel() else 1.0
    torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-7, atol=1e-8 * scale)


def dense_rows(network: Network) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """By hand: the weights of Σ_samples f by explained tensor, Σ C_b and f per sample."""
    z = network.dense()
    f = z.columns[..., CLASS]  # (numbers + 1, B)
    weights, first = {}, 0
    for key, shape in network.explained().items():
        size = torch.Size(shape).numel()
        weights[key] = f[first : first + size].sum(1).reshape(shape)
        first += size
    return weights, f[-1], z.value[:, CLASS]


def check_values(network: Network, e: omenn.Explanation) -> None:
    weights, constants, output = dense_rows(network)
    assert e.exact, e
    assert list(e.matrix) == list(weights), "keys, in the order of the inputs"
    close(e.output, output)
    close(e.bias_share, constants)
    for key, weight in weights.items():
        close(e.weight[key], weight)
    total = torch.stack([m.reshape(len(output), -1).sum(1) for m in e.matrix.values()]).sum(0)
    close(total, output)


def check_alone(network: Network, e: omenn.Explanation) -> None:
    """A sample alone has the map that it has in the batch, and so has a batch in another order."""
    count = len(e.output)
    last = {k: v[-1:] for k, v in network.inputs.items()}
    turned = {k: v.flip(0) for k, v in network.inputs.items()}
    one, other = explained(network, last), explained(network, turned)
    for key in e.matrix:
        close(one.matrix[key][0], e.matrix[key][count - 1])
        close(other.matrix[key].flip(0), e.matrix[key])


def check_order(network: Network, e: omenn.Explanation) -> None:
    """Inputs in another order: the same values under the same names."""
    turned = dict(reversed(list(network.inputs.items())))
    other = explained(network, turned)
    assert list(other.matrix) == list(reversed(list(e.matrix)))
    for key in e.matrix:
        close(other.matrix[key], e.matrix[key])


def check_parts(network: Network, e: omenn.Explanation) -> None:
    """Branches that are only added: each input has what its branch adds, constants included."""
    for key, part in network.parts().items():
        close(e.matrix[key].reshape(len(part), -1).sum(1), part[:, CLASS])


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


def check_copies(e: omenn.Explanation) -> None:
    """A copy is the result again, and so is what comes back from a file."""
    for twin in (copy.deepcopy(e), pickle.loads(pickle.dumps(e))):
        for key in e.matrix:
            assert torch.equal(twin.matrix[key], e.matrix[key])


def check_inputs(network: Network, before: dict[str, Tensor]) -> None:
    for key, value in network.inputs.items():
        assert torch.equal(value, before[key]), f"input {key!r} was written to"
        assert not value.requires_grad


def check(seed: int) -> None:
    network = random_network(seed)
    before = {k: v.clone() for k, v in network.inputs.items()}
    noise = torch.get_rng_state()
    e = explained(network)
    assert torch.equal(torch.get_rng_state(), noise), "random numbers were drawn"
    check_values(network, e)
    check_alone(network, e)
    check_order(network, e)
    if network.late:
        check_parts(network, e)
    if network.padded and not (network.late and "ids" in network.inputs):
        check_padded(network, e)
    check_copies(e)
    check_inputs(network, before)


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
