"""What a tensor holds, as bytes and as a digest: for names of results, never for security."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def content(tensor: Tensor) -> bytes:
    """The numbers of a tensor as they lie in memory, row by row, whatever its type and layout.

    Of a sparse or quantised tensor those that it stores, of a meta tensor none.

    >>> content(torch.tensor([1.0, -2.0], dtype=torch.bfloat16)).hex()
    '803f00c0'
    """
    return b"".join(_dense(part) for part in _parts(tensor.detach()))


def digest(tensors: Sequence[Tensor], names: Sequence[str] = ()) -> str:
    """A digest of tensors with their types and shapes, and of their names.

    >>> a, b = torch.ones(2, 3), torch.ones(3, 2)
    >>> digest([a]) == digest([a.clone()]), digest([a]) == digest([b])
    (True, False)
    """
    found = hashlib.sha256(" ".join(names).encode())
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(content(tensor))
    return found.hexdigest()[:16]


def _parts(tensor: Tensor) -> list[Tensor]:
    if tensor.is_meta:
        return []
    if tensor.is_quantized:
        if tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
        else:
            scales = torch.tensor(tensor.q_scale(), dtype=torch.float64)
            zeros = torch.tensor(tensor.q_zero_point())
        return [tensor.int_repr(), scales, zeros]
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor.to_dense() if tensor.layout != torch.strided else tensor]


def _dense(tensor: Tensor) -> bytes:
    plain = tensor.cpu().resolve_conj().resolve_neg().contiguous().flatten()
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
