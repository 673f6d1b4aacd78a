"""Spellings that no other case uses: methods, functions, twins and names for machines."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from opcases.case import Case, draw, table
from oracle import diagonal, halves, held, selected

X, Y = draw(2, 3, 4), draw(2, 3, 4, seed=1)
POSITIVE = draw(2, 3, 4, low=0.2, high=3.0)
ROW, MATRIX = draw(4, seed=3), draw(4, 5, seed=7)
LINE, IMAGE, VOLUME = draw(2, 2, 6), draw(2, 2, 4, 4), draw(1, 2, 4, 4, 4)
MASK = torch.arange(24).reshape(2, 3, 4) % 3 == 0
PAIR = torch.tensor([2, 0])
KERNELS = torch._C._nn
pool3d = torch.nn.MaxPool3d(2, return_indices=True)


def names(*homes, spelled: str) -> dict:
    """Functions of these names, wherever they are among ``homes``."""
    return {
        f"{getattr(home, '__name__', 'Tensor').rsplit('.', 1)[-1]}.{name} again": getattr(
            home, name
        )
        for home in homes
        for name in spelled.split()
        if hasattr(home, name)
    }


ELEMENTS: list[Case] = [
    *(case for name in "gelu silu elu mish hardsigmoid hardswish leaky_relu".split()
      for case in table(name, names(KERNELS, spelled=f"{name} {name}_"), X, oracle=diagonal)),
    *(case for name in "tanh sigmoid".split()
      for case in table(name, names(F, spelled=name), X, oracle=diagonal)),
    *table("elu", names(torch, spelled="celu"), X, oracle=diagonal),
    *table("rrelu", names(torch, spelled="rrelu_"), X, oracle=diagonal),
    *table("abs", names(Tensor, spelled="absolute absolute_"), X, oracle=diagonal),
    *table("neg", names(torch, Tensor, spelled="neg_ negative negative_"), X),
    *table("conj", names(torch, Tensor, spelled="conj conj_physical conj_physical_ resolve_conj "
                                                "resolve_neg"), X),
    *table("detach", {"torch.detach_": lambda x: torch.detach_(x.clone())}, X),
    *table("clamp", names(KERNELS, torch, Tensor, spelled="hardtanh relu6 relu6_ hardshrink "
                          "nan_to_num nan_to_num_"), X, oracle=selected),
    *table("clamp", {
        "torch.clamp_": lambda x: torch.clamp_(x, -1, 1),
        "torch.clip_": lambda x: torch.clip_(x, -1),
        "T.clip": lambda x: x.clip(-1, 0.5), "torch.clamp_min": lambda x: torch.clamp_min(x, 0.3),
        "torch.clamp_min_": lambda x: torch.clamp_min_(x, 0.3),
        "T.clamp_min_": lambda x: x.clamp_min_(0.1),
        "torch.clamp_max": lambda x: torch.clamp_max(x, 0.3),
        "T.clamp_max_": lambda x: x.clamp_max_(0.1),
        "torch.clamp_max_": lambda x: torch.clamp_max_(x, 0.3),
        "torch.threshold": lambda x: torch.threshold(x, 0.2, -3.0),
        "torch.threshold_": lambda x: torch.threshold_(x, 0.2, 5.0),
    }, X, oracle=selected),
    *table("dropout", {
        "3d": torch.nn.Dropout3d().eval(),
        "torch in place": lambda x: torch.dropout_(x, 0.5, False),
        **{f"torch.{n}": lambda x, n=n: getattr(torch, n)(x, 0.5, False) for n in (
            "alpha_dropout alpha_dropout_ feature_alpha_dropout feature_alpha_dropout_ "
            "feature_dropout feature_dropout_").split()},
    }, draw(1, 2, 2, 2, 2)),
]  # fmt: skip

# Frozen coefficients in place: the tensor loses its history.
HELD: list[Case] = [
    *(case for name in
      "log log2 log10 rsqrt reciprocal floor ceil round trunc frac sign sgn".split()
      for case in table(name, {
          **({f"torch.{name}_ factor": lambda x, n=name: x * getattr(torch, n + "_")(x.clone())}
             if hasattr(torch, name + "_") else {}),
          f"T.{name}_": lambda x, n=name: x * getattr(x * 1, n + "_")(),
      }, POSITIVE, oracle=held(lambda z, x, n=name: z[0] * getattr(torch, n)(x[0])))),
    *table("round", {"special": lambda x: x * torch.special.round(x)}, POSITIVE,
           oracle=held(lambda z, x: z[0] * x[0].round())),
    *table("logsumexp", {"special": lambda x: x * torch.special.logsumexp(x, 2, True)}, X,
           oracle=held(lambda z, x: z[0] * x[0].exp().sum(2, keepdim=True).log())),
    *table("log_softmax", {"special": lambda x: torch.special.log_softmax(x, 2)}, X,
           oracle=held(lambda z, x: z[0] - x[0].exp().sum(2, keepdim=True).log())),
]  # fmt: skip

ARITHMETIC: list[Case] = [
    *table("add", {"T.__add__": lambda x, y: x.__add__(y), "T.__radd__": lambda x, y: x.__radd__(y),
                   "T.__iadd__": lambda x, y: Tensor.__iadd__(x, y)}, X, Y),
    *table("sub", {"T.__sub__": lambda x, y: x.__sub__(y), "T.subtract": lambda x, y: x.subtract(y),
                   "T.subtract_": lambda x, y: x.subtract_(y)}, X, Y),
    *table("mul", {"T.__mul__": lambda x, y: x.__mul__(y), "T.__rmul__": lambda x, y: x.__rmul__(y),
                   "torch.multiply": torch.multiply, "T.multiply_": lambda x, y: x.multiply_(y)},
           X, Y, oracle=halves),
    *table("div", {
        "T.__truediv__": lambda x, y: x.__truediv__(y), "T.__div__": lambda x, y: x.__div__(y),
        "T.__idiv__": lambda x, y: x.__idiv__(y), "T.divide": lambda x, y: x.divide(y),
        "T.divide_": lambda x, y: x.divide_(y), "torch.true_divide": torch.true_divide,
        "T.true_divide_": lambda x, y: x.true_divide_(y),
    }, X, POSITIVE, oracle=held(lambda z, x: z[0] / x[1])),
    *table("maximum", {"T.maximum": lambda x, y: x.maximum(y), "T.fmax": lambda x, y: x.fmax(y),
                       "T.fmin": lambda x, y: x.fmin(y)}, X, Y, oracle=selected),
    *table("matmul", {"T.__rmatmul__": lambda x: x.__rmatmul__(draw(5, 3)),
                      "linalg": lambda x: torch.linalg.matmul(x, MATRIX)}, X),
    *table("matmul", {"T.mm": lambda x: x.mm(MATRIX), "torch.mv": lambda x: torch.mv(x, ROW)},
           draw(3, 4), samples=False),
    *table("matmul", {"T.dot": lambda a, b: a.dot(b)}, ROW, draw(4, seed=8), oracle=halves,
           samples=False),
    *table("outer", {"T.outer": lambda a, b: a.outer(b), "T.ger": lambda a, b: a.ger(b)},
           draw(3), draw(4), oracle=halves, samples=False),
    *table("kron", {"T.kron": lambda a, b: a.kron(b)}, draw(2, 3), draw(2, 2), oracle=halves,
           samples=False),
    *table("addbmm", {"T.addbmm": lambda x: draw(3, 2).addbmm(x, draw(2, 4, 2)),
                      "T.addbmm_": lambda x: draw(3, 2).addbmm_(x, draw(2, 4, 2))}, X,
                      samples=False),
    *table("baddbmm", {"T.baddbmm_": lambda x: draw(2, 3, 2).baddbmm_(x, draw(2, 4, 2))}, X),
    *table("rms_norm", {"torch": lambda x: torch.rms_norm(x, (4,), ROW, 1e-6)}, X, oracle=held(
        lambda z, x: ROW * z[0] / (x[0].square().mean(-1, keepdim=True) + 1e-6).sqrt())),
    *table("glu", {"kernel": lambda x: KERNELS.glu(x, -1)}, X,
           oracle=held(lambda z, x: z[0][..., :2] * x[0][..., 2:].sigmoid())),
]  # fmt: skip

LAYOUT: list[Case] = [
    *table("transpose", {"T.swapaxes": lambda x: x.swapaxes(1, 2),
                         "T.swapaxes_": lambda x: x.swapaxes_(1, 2),
                         "torch.swapdims": lambda x: torch.swapdims(x, 1, 2),
                         "T.swapdims_": lambda x: x.swapdims_(1, 2), "mH": lambda x: x.mH}, X),
    *table("t", {"T.t_": lambda x: x.t_()}, draw(3, 4), samples=False),
    *table("adjoint", {"torch": torch.adjoint}, X),
    *table("movedim", {"torch.movedim": lambda x: torch.movedim(x, 1, 2),
                       "T.moveaxis": lambda x: x.moveaxis(1, 2)}, X),
    *table("chunk", {"torch.unsafe_chunk": lambda x: torch.unsafe_chunk(x, 2, 2)[1],
                     "T.unsafe_chunk": lambda x: x.unsafe_chunk(2, -1)[0]}, X),
    *table("split", {
        "torch.split_with_sizes": lambda x: torch.split_with_sizes(x, [1, 3], 2)[1],
        "T.tensor_split": lambda x: x.tensor_split((1,), 2)[1],
        "T.hsplit": lambda x: x.hsplit(3)[1],
        "torch.dsplit": lambda x: torch.dsplit(x, 2)[1], "T.dsplit": lambda x: x.dsplit((1,))[0],
        "torch.unsafe_split": lambda x: torch.unsafe_split(x, 2, 1)[0],
        "T.unsafe_split": lambda x: x.unsafe_split(2, 1)[1],
    }, X),
    *table("split", {"torch.vsplit": lambda x: torch.vsplit(x, 2)[1],
                     "T.vsplit": lambda x: x.vsplit(2)[0]},
           X, samples=False),
    *table("diagonal", {"linalg": lambda x: torch.linalg.diagonal(x, dim1=1, dim2=2)}, X),
    *table("diag_embed", {"T": lambda x: x.diag_embed()}, X),
    *table("trace", {"T": lambda x: x.trace().reshape(1)}, draw(3, 3), samples=False),
    *table("flatten", {"torch.ravel": torch.ravel}, X, samples=False),
    *table("fliplr", {"T": lambda x: x.fliplr()}, X),
    *table("flipud", {"T": lambda x: x.flipud()}, X, samples=False),
    *table("rot90", {"T": lambda x: x.rot90(1, (1, 2))}, X),
    *table("triu", {"T": lambda x: x.triu()}, X),
    *table("broadcast_to", {"T": lambda x: x.broadcast_to((2, 3, 4))}, draw(2, 1, 4)),
    *table("take", {"T": lambda x: x.take(PAIR)}, X, samples=False),
    *table("take_along_dim", {"T": lambda x: x.take_along_dim(PAIR[None, None], 2)}, X),
    *table("masked_select", {"torch": lambda x: torch.masked_select(x, MASK)}, X, samples=False),
    *table("nanmean", {"torch": lambda x: torch.nanmean(x, 1)}, X),
    *table("fill", {"torch.fill_": lambda x: torch.fill_(x[:, 0], 2.0)[:, None] + x}, X),
    *table("zero", {"torch.zero_": lambda x: torch.zero_(x[:, 1:]) + x[:, :2]}, X),
    *table("index_copy", {"torch": lambda x: torch.index_copy(x, 1, PAIR, Y[:, :2]),
                          "T.index_copy_": lambda x: x.index_copy_(1, PAIR, Y[:, :2])}, X),
    *table("index_fill", {"torch": lambda x: torch.index_fill(x, 1, PAIR, 1.5)}, X),
    *table("index_put", {
        "torch.index_put_": lambda x: torch.index_put_(x, (torch.tensor([0, 1]), PAIR), ROW),
        "torch.masked_scatter": lambda x: torch.masked_scatter(x, MASK, Y),
        "T.masked_scatter": lambda x: x.masked_scatter(MASK, Y),
        "T.masked_scatter_": lambda x: x.masked_scatter_(MASK, Y),
        "masked scatter into constant": lambda x: Y.masked_scatter(MASK, x),
    }, X, samples=False),
    *table("embedding", {"torch": lambda w: torch.embedding(w, torch.tensor([[0, 2], [1, 1]]))},
           draw(3, 4), samples=False),
    *table("pad", {"kernel": lambda x: KERNELS.pad(x, (1, 2), "constant", 0.5)}, X),
]  # fmt: skip

MAPS: list[Case] = [
    *table("avg_pool", {"kernel 2d": lambda x: KERNELS.adaptive_avg_pool2d(x, (2, 2))}, IMAGE),
    *table("avg_pool", {"kernel 3d": lambda x: KERNELS.adaptive_avg_pool3d(x, 2)}, VOLUME),
    *table("max_pool", {
        "torch 1d": lambda x: torch.max_pool1d(x, 2),
        "torch adaptive 1d": lambda x: torch.adaptive_max_pool1d(x, 2)[0],
        "torch 1d, indices": lambda x: torch.max_pool1d_with_indices(x, 2)[0],
        "adaptive 1d, indices": lambda x: F.adaptive_max_pool1d(x, 3, return_indices=True)[0],
    }, LINE, oracle=selected),
    *table("max_pool", {
        "2d, kernel": lambda x: KERNELS.max_pool2d_with_indices(x, 2)[0],
        "adaptive 2d, kernel": lambda x: KERNELS.adaptive_max_pool2d(x, 2)[0],
    }, IMAGE, oracle=selected),
    *table("max_pool", {
        "torch 3d": lambda x: torch.max_pool3d(x, 2),
        "3d, kernel": lambda x: KERNELS.max_pool3d_with_indices(x, 2)[0],
        "adaptive 3d, kernel": lambda x: KERNELS.adaptive_max_pool3d(x, 2)[0],
        "3d, indices": lambda x: F.max_pool3d(x, 2, return_indices=True)[0],
        "adaptive 3d, indices": lambda x: F.adaptive_max_pool3d(x, 2, return_indices=True)[0],
    }, VOLUME, oracle=selected),
    *table("max_unpool", {"kernel 2d": lambda x: KERNELS.max_unpool2d(x, torch.tensor(
        [[[[0, 3], [8, 14]]] * 2] * 2), [4, 4])}, draw(2, 2, 2, 2)),
    *table("max_unpool", {
        "3d": lambda x: F.max_unpool3d(x, pool3d(VOLUME)[1], 2),
        "kernel 3d": lambda x: KERNELS.max_unpool3d(x, pool3d(VOLUME)[1], [4] * 3, [2] * 3,
                                                    [0] * 3),
    }, draw(1, 2, 2, 2, 2)),
    *table("amax", {"torch.amin": lambda x: torch.amin(x, 1),
                    "T.aminmax": lambda x: x.aminmax(dim=1)[0]},
           X, oracle=selected),
    *table("nanmedian", {"torch": lambda x: torch.nanmedian(x, 1)[0]}, X, oracle=selected),
    *table("cummax", {"torch": lambda x: torch.cummax(x, 1)[0]}, X, oracle=selected),
    *table("cummin", {"T": lambda x: x.cummin(1)[0]}, X, oracle=selected),
]  # fmt: skip

CASES = ELEMENTS + HELD + ARITHMETIC + LAYOUT + MAPS
