"""A digest of tensors of every type and layout: equal where they are equal, and only there."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from omenn.engine.digest import content, digest

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.complex64, torch.complex128, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)], ids=str)
def test_every_type(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape) % 2
    values, others = numbers.to(dtype), (1 - numbers).to(dtype)
    assert len(content(values)) == values.numel() * values.element_size()
    assert digest([values]) == digest([values.clone()])
    assert (digest([values]) != digest([others])) == bool(values.numel())


def test_the_bytes_are_those_of_numpy() -> None:
    values = torch.randn(3, 4)
    assert content(values) == values.numpy().tobytes()
    assert content(values.t()) == np.ascontiguousarray(values.numpy().T).tobytes()
    assert content(torch.randn(2, dtype=torch.complex64).conj().resolve_conj().conj())
    expected = hashlib.sha256(b"a" + f"torch.float32 {(3, 4)}".encode() + values.numpy().tobytes())
    assert digest([values], ["a"]) == expected.hexdigest()[:16]


def test_histories_and_conjugates_do_not_matter() -> None:
    z = torch.randn(3, dtype=torch.complex64)
    assert digest([z.conj()]) == digest([z.conj().resolve_conj()]) != digest([z])
    x = torch.randn(3, requires_grad=True)
    assert digest([x]) == digest([x.detach()])


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:torch.quantize:UserWarning")
def test_sparse_and_quantised() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    for sparse in (torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc):
        assert digest([sparse(x)]) == digest([sparse(x.clone())]) != digest([sparse(2 * x)])
    each = [torch.quantize_per_tensor(x, scale, 1, torch.qint8) for scale in (0.1, 0.1, 0.2)]
    assert digest(each[:1]) == digest(each[1:2]) != digest(each[2:])


def test_meta_tensors_have_a_type_and_a_shape() -> None:
    a, b = torch.empty(2, device="meta"), torch.empty(3, device="meta")
    assert digest([a]) != digest([b])
    assert content(a) == b""
