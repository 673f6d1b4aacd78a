"""Layout operators: every one affine as it stands; constants written or concatenated."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opcases.case import Case, draw, table
from oracle import halves, held, selected

X = draw(2, 3, 4)
Y = draw(2, 3, 4, seed=1)
IMAGE = draw(2, 2, 3, 3)
CONST = draw(2, 3, 4, seed=2)
ROW = draw(4, seed=3)
MASK = torch.arange(24).reshape(2, 3, 4) % 3 == 0
INDEX = torch.tensor([2, 0, 2])
PICK = torch.tensor([[[0, 3], [1, 2], [3, 3]], [[2, 1], [0, 0], [1, 3]]])


def zeros_then(write):
    """A constant tensor that the model fills with what depends on the input."""

    def call(x: Tensor) -> Tensor:
        out = torch.zeros(x.shape, dtype=x.dtype)
        write(out, x)
        return out

    return call


def ones_then(write):
    def call(x: Tensor) -> Tensor:
        out = torch.ones(x.shape, dtype=x.dtype)
        write(out, x)
        return out

    return call


def into(write):
    """The input itself is written into."""

    def call(x: Tensor, *rest: Tensor) -> Tensor:
        write(x, *rest)
        return x

    return call


def setitem(key):
    return lambda a, b: a.__setitem__(key, b[key])


VIEWS: list[Case] = [
    *table("permute", {
        "method": lambda x: x.permute(0, 2, 1), "function": lambda x: torch.permute(x, (0, 2, 1)),
        "keyword": lambda x: torch.permute(input=x, dims=(0, 2, 1)),
    }, X),
    *table("transpose", {
        "method": lambda x: x.transpose(1, 2), "function": lambda x: torch.transpose(x, 1, 2),
        "swapaxes": lambda x: torch.swapaxes(x, 1, 2), "swapdims": lambda x: x.swapdims(1, 2),
        "mT": lambda x: x.mT, "keyword": lambda x: x.transpose(dim0=-1, dim1=-2),
        "contiguous in place": lambda x: x.transpose_(1, 2),
    }, X),
    *table("transpose", {"T": lambda x: x.T, "H": lambda x: x.H}, draw(3, 4), samples=False),
    *table("t", {"method": lambda x: x.t(), "function": torch.t}, draw(3, 4), samples=False),
    *table("adjoint", {"method": lambda x: x.adjoint()}, X),
    *table("movedim", {
        "method": lambda x: x.movedim(1, 2), "moveaxis": lambda x: torch.moveaxis(x, -1, 1),
    }, X),
    *table("expand", {
        "method": lambda x: x.expand(2, 5, 4), "sizes": lambda x: x.expand((-1, 5, -1)),
        "as": lambda x: x.expand_as(torch.zeros(2, 5, 4)),
    }, draw(2, 1, 4)),
    *table("broadcast_to", {"function": lambda x: torch.broadcast_to(x, (2, 3, 4))}, draw(2, 1, 4)),
    *table("narrow", {
        "method": lambda x: x.narrow(1, 1, 2), "function": lambda x: torch.narrow(x, 2, 0, 3),
    }, X),
    *table("select", {"method": lambda x: x.select(1, 2),
                      "function": lambda x: torch.select(x, -1, 0)}, X),
    *table("chunk", {
        "first": lambda x: x.chunk(2, -1)[0], "second": lambda x: torch.chunk(x, 2, dim=-1)[1],
        "keyword": lambda x: torch.chunk(input=x, chunks=2, dim=2)[0],
        "joined": lambda x: torch.cat(x.chunk(3, 1)[::-1], 1),
    }, X),
    *table("split", {
        "size": lambda x: x.split(3, 2)[1], "sizes": lambda x: x.split([1, 3], dim=2)[1],
        "function": lambda x: torch.split(x, 2, 1)[0],
        "tensor_split": lambda x: torch.tensor_split(x, 2, 2)[1],
        "split_with_sizes": lambda x: x.split_with_sizes([2, 2], 2)[0],
        "hsplit": lambda x: torch.hsplit(x, 3)[2],
    }, X),
    *table("unbind", {"method": lambda x: x.unbind(1)[2],
                      "function": lambda x: torch.unbind(x, 2)[0],
                      "iteration": lambda x: list(x.transpose(0, 1))[1]}, X),
    *table("getitem", {
        "integer": lambda x: x[:, 1], "slice": lambda x: x[:, 1:, ::2],
        "last": lambda x: x[..., -1],
        "none": lambda x: x[:, None, 0], "list": lambda x: x[:, [2, 0, 0]],
        "tensor": lambda x: x[:, INDEX], "range": lambda x: x[torch.arange(2), INDEX[:2]],
        "dunder": lambda x: x.__getitem__((slice(None), 2)),
    }, X),
    *table("getitem", {"mask": lambda x: x[MASK]}, X, samples=False),
    *table("diagonal", {"method": lambda x: x.diagonal(dim1=1, dim2=2),
                        "function": lambda x: torch.diagonal(x, 0, 1, 2)}, X),
    *table("rot90", {"function": lambda x: torch.rot90(x, 1, (1, 2))}, X),
    *table("reshape", {
        "method": lambda x: x.reshape(2, 12), "function": lambda x: torch.reshape(x, (2, 4, 3)),
        "minus one": lambda x: x.reshape(2, -1, 2),
        "as": lambda x: x.reshape_as(torch.zeros(2, 12)),
        "keyword": lambda x: torch.reshape(input=x, shape=(2, 12)),
    }, X),
    *table("view", {"method": lambda x: x.view(2, 2, 6), "list": lambda x: x.view([2, 12]),
                    "as": lambda x: x.view_as(torch.zeros(2, 12))}, X),
    *table("flatten", {"method": lambda x: x.flatten(1),
                       "function": lambda x: torch.flatten(x, 1, 2),
                       "module": nn.Flatten()}, X),
    *table("flatten", {"ravel": lambda x: x.ravel()}, X, samples=False),
    *table("unflatten", {"method": lambda x: x.unflatten(2, (2, 2)),
                         "function": lambda x: torch.unflatten(x, -1, (2, -1)),
                         "module": nn.Unflatten(2, (2, 2))}, X),
    *table("squeeze", {"method": lambda x: x.squeeze(1), "all": lambda x: x.squeeze(),
                       "function": lambda x: torch.squeeze(x, dim=(1, 3)),
                       "in place": lambda x: x.squeeze_(1)}, draw(2, 1, 3, 1)),
    *table("unsqueeze", {"method": lambda x: x.unsqueeze(1), "in place": lambda x: x.unsqueeze_(-1),
                         "function": lambda x: torch.unsqueeze(x, 2)}, X),
    *table("atleast_1d", {"function": torch.atleast_1d}, X),
    *table("atleast_2d", {"function": torch.atleast_2d}, X),
    *table("atleast_3d", {"function": torch.atleast_3d}, draw(2, 3)),
    *table("contiguous", {"method": lambda x: x.transpose(1, 2).contiguous()}, X),
    *table("clone", {"method": lambda x: x.clone(), "function": torch.clone}, X),
    *table("to", {
        "dtype": lambda x: x.to(torch.float64), "double": lambda x: x.double(),
        "device": lambda x: x.to("cpu"), "cpu": lambda x: x.cpu(),
        "type": lambda x: x.type(x.dtype),
        "type_as": lambda x: x.type_as(CONST), "tensor": lambda x: x.to(CONST, copy=True),
    }, X),
    *table("positive", {"function": torch.positive, "sign": lambda x: +x}, X),
    *table("neg", {"sign": lambda x: -x, "function": torch.neg, "negative": torch.negative,
                   "in place": lambda x: x.neg_()}, X),
    *table("requires_grad_", {"method": lambda x: x.requires_grad_()}, X),
    *table("conj", {"real": lambda x: x.conj(), "physical": torch.conj_physical,
                    "resolved": lambda x: x.conj().resolve_conj().resolve_neg()}, X),
    *table("detach", {"method": lambda x: x.detach() * 3, "data": lambda x: x.data,
                      "function": lambda x: torch.detach(x), "in place": lambda x: x.detach_()}, X),
    *table("roll", {
        "function": lambda x: torch.roll(x, 1, 1), "method": lambda x: x.roll((1, -1), (1, 2)),
        "keyword": lambda x: torch.roll(input=x, shifts=2, dims=1),
    }, X),
    *table("roll", {"flat": lambda x: x.roll(5)}, X, samples=False),
    *table("flip", {"function": lambda x: torch.flip(x, [1]), "method": lambda x: x.flip(1, 2),
                    "keyword": lambda x: torch.flip(input=x, dims=(2,))}, X),
    *table("fliplr", {"function": torch.fliplr}, X),
    *table("flipud", {"function": torch.flipud}, X, samples=False),
    *table("tril", {"function": torch.tril, "method": lambda x: x.tril(-1),
                    "in place": lambda x: x.tril_()}, X),
    *table("triu", {"function": torch.triu, "in place": lambda x: x.triu_(1)}, X),
    *table("cumsum", {"method": lambda x: x.cumsum(1), "function": lambda x: torch.cumsum(x, -1),
                      "in place": lambda x: x.cumsum_(1)}, X),
    *table("zero", {"in place": lambda x: x[:, 1:].zero_() + x[:, :2]}, X),
    *table("diff", {"function": torch.diff, "method": lambda x: x.diff(dim=1)}, X),
    *table("diag_embed", {"function": torch.diag_embed}, X),
    *table("trace", {"function": lambda x: torch.trace(x).reshape(1)}, draw(3, 3), samples=False),
    *table("view_as_complex", {"there and back": lambda x: torch.view_as_real(
        torch.view_as_complex(x.reshape(2, 3, 2, 2)) * (1 + 2j))}, X),
    *table("view_as_real", {"of a product": lambda x: torch.view_as_real(x * (0.5 - 1j))}, X),
    *table("real", {"property": lambda x: (x * (1 + 2j)).real,
                    "function": lambda x: torch.real(x * (2 - 1j))}, X),
    *table("imag", {"property": lambda x: (x * (1 + 2j)).imag,
                    "function": lambda x: torch.imag(x * (2 - 1j))}, X),
    *table("index_select", {"method": lambda x: x.index_select(1, INDEX),
                            "function": lambda x: torch.index_select(x, 2, INDEX)}, X),
    *table("gather", {"method": lambda x: x.gather(2, PICK),
                      "keyword": lambda x: torch.gather(input=x, dim=2, index=PICK)}, X),
    *table("take_along_dim", {"function": lambda x: torch.take_along_dim(x, PICK, 2)}, X),
    *table("take", {"function": lambda x: torch.take(x, INDEX)}, X, samples=False),
    *table("masked_select", {"method": lambda x: x.masked_select(MASK)}, X, samples=False),
    *table("repeat", {"method": lambda x: x.repeat(1, 2, 1)}, X),
    *table("tile", {"method": lambda x: x.tile((1, 1, 2)),
                    "function": lambda x: torch.tile(x, (1, 2, 1))}, X),
    *table("repeat_interleave", {"method": lambda x: x.repeat_interleave(2, 1),
                                 "function": lambda x: torch.repeat_interleave(x, INDEX, 1)}, X),
]  # fmt: skip

JOINS: list[Case] = [
    *table("cat", {
        "two": lambda x, y: torch.cat([x, y], 1), "tuple": lambda x, y: torch.cat((x, y), dim=-1),
        "concat": lambda x, y: torch.concat([x, y], 2),
        "thrice": lambda x, y: torch.cat([x, y, x], 1),
        "concatenate": lambda x, y: torch.concatenate([y, x], axis=1),
        "keyword": lambda x, y: torch.cat(tensors=[x, y], dim=1),
        "empty": lambda x, y: torch.cat([x[:, :0], y + 1, y[:, :0]], 1),
    }, X, Y),
    *table("cat", {
        "constant first": lambda x: torch.cat([CONST, x], 1),
        "constant last": lambda x: torch.cat([x, CONST[:, :1]], dim=1),
        "token": lambda x: torch.cat([ROW.expand(2, 1, 4), x], 1),
        "zeros": lambda x: torch.cat([x, torch.zeros(2, 1, 4, dtype=x.dtype)], 1),
    }, X),
    *table("stack", {"two": lambda x, y: torch.stack([x, y], 1),
                     "last": lambda x, y: torch.stack((x, y), dim=-1)}, X, Y),
    *table("stack", {"constant": lambda x: torch.stack([x, CONST], 2)}, X),
    *table("hstack", {"two": lambda x, y: torch.hstack([x, y])}, X, Y),
    *table("dstack", {"two": lambda x, y: torch.dstack([x, y])}, X, Y),
    *table("hstack", {"constant": lambda x: torch.hstack((CONST, x))}, X),
    *table("vstack", {"vstack": lambda x, y: torch.vstack([x, y])}, X, Y, samples=False),
    *table("pad", {
        "function": lambda x: F.pad(x, (1, 2)),
        "value": lambda x: F.pad(x, (1, 0, 0, 2), value=3.0),
        "positional": lambda x: F.pad(x, (1, 1), "constant", -0.5),
        "crop": lambda x: F.pad(x, (-1, 1)),
        "reflect": lambda x: F.pad(x, (1, 2), mode="reflect"), "module": nn.ConstantPad1d(1, 2.0),
        "replicate": lambda x: F.pad(x, (2, 0), "replicate"), "zero pad": nn.ZeroPad1d((0, 1)),
        "circular": lambda x: F.pad(x, (1, 1), mode="circular"),
        "keyword": lambda x: F.pad(input=x, pad=(1, 0), mode="constant", value=1.5),
    }, X),
    *table("pad", {"reflection 2d": nn.ReflectionPad2d(1), "replication 2d": nn.ReplicationPad2d(1),
                   "circular 2d": nn.CircularPad2d(1),
                   "constant 2d": nn.ConstantPad2d(1, 0.7)}, IMAGE),
]  # fmt: skip

WRITES: list[Case] = [
    *table("setitem", {
        "into zeros": zeros_then(setitem((slice(None), 1))),
        "into ones": ones_then(setitem((slice(None), slice(0, 2)))),
        "mask into ones": ones_then(setitem(MASK)),
        "list into ones": ones_then(setitem((slice(None), [0, 2]))),
        "all of it": ones_then(setitem(slice(None))),
        "number": into(lambda x: x.__setitem__((slice(None), 0), 4.0)),
        "constant": into(lambda x: x.__setitem__((slice(None), 1), ROW)),
        "twice": ones_then(lambda o, x: (o.__setitem__((slice(None), 0), x[:, 2]),
                                         o.__setitem__((slice(None), 1), 2 * x[:, 1]))),
        "augmented": ones_then(lambda o, x: o.__setitem__((slice(None), 0), o[:, 0] + x[:, 2])),
    }, X),
    *table("setitem", {"input into input": into(
        lambda x, y: x.__setitem__((slice(None), slice(1, None)), y[:, :2]))}, X, Y),
    *table("copy_", {"into zeros": zeros_then(lambda o, x: o.copy_(x)),
                     "into a part": ones_then(lambda o, x: o[:, 1].copy_(x[:, 0])),
                     "constant into": lambda x: x.copy_(ROW) + 0 * x}, X),
    *table("copy_", {"input into input": lambda x, y: x.copy_(y) + y}, X, Y),
    *table("index_put", {
        "function": lambda x: torch.index_put(CONST, (torch.tensor([0, 1]), INDEX[:2]), x[:, 1]),
        "accumulate": lambda x: x.index_put((torch.tensor([0, 1]), INDEX[:2]), ROW,
                                            accumulate=True),
        "in place": lambda x: x.index_put_((torch.tensor([0, 1]), INDEX[:2]), ROW),
    }, X),
    *table("index_add", {
        "method": lambda x: x.index_add(1, INDEX, CONST),
        "in place": lambda x: x.index_add_(1, INDEX, CONST),
        "into constant": lambda x: CONST.index_add(1, INDEX, x, alpha=2),
        "into zeros": zeros_then(lambda o, x: o.index_add_(1, INDEX, x)),
    }, X),
    *table("index_add", {"both": lambda x, y: torch.index_add(x, 1, INDEX, y)}, X, Y),
    *table("index_copy", {"method": lambda x: x.index_copy(1, INDEX[:2], CONST[:, :2]),
                          "into constant": lambda x: CONST.index_copy(1, INDEX[:2], x[:, :2])}, X),
    *table("select_scatter", {
        "method": lambda x: x.select_scatter(CONST[:, 0], 1, 2),
        "into constant": lambda x: torch.select_scatter(CONST, x[:, 0], 1, 2)}, X),
    *table("slice_scatter", {
        "method": lambda x: x.slice_scatter(CONST[:, :2], 1, 1),
        "into constant": lambda x: torch.slice_scatter(CONST, x[:, :2], 1, 0, 2)}, X),
    *table("diagonal_scatter", {
        "method": lambda x: x.diagonal_scatter(CONST[:, :, 0], 0, 1, 2),
        "into constant": lambda x: torch.diagonal_scatter(CONST, x[:, :, 0], 0, 1, 2)}, X),
    *table("index_fill", {"number": lambda x: x.index_fill(1, INDEX[:2], 2.5),
                          "in place": lambda x: x.index_fill_(1, INDEX[:2], -1)}, X),
    *table("scatter", {
        "number": lambda x: x.scatter(2, PICK, 1.5),
        "constant": lambda x: x.scatter(2, PICK[..., :1], CONST),
        "into constant": lambda x: torch.scatter(CONST, 2, PICK[..., :1], x[..., :1]),
        "in place": lambda x: x.scatter_(2, PICK, 0.5),
        "reduce sum": lambda x: CONST.scatter_reduce(2, PICK, x[..., :2], "sum"),
        "reduce mean": lambda x: torch.scatter_reduce(CONST, 2, PICK, x[..., 2:], reduce="mean"),
        "reduce mean in place": ones_then(lambda o,
                                          x: o.scatter_reduce_(2, PICK, x[..., 2:], "mean")),
    }, X),
    *table("scatter", {
        "largest": zeros_then(lambda o, x: o.scatter_reduce_(2, PICK, x[..., :2].abs(), "amax")),
    }, X.abs(), oracle=selected),
    *table("scatter", {
        "smallest": lambda x: CONST.scatter_reduce(2, PICK, x[..., :2], "amin", include_self=False),
    }, X, oracle=selected),
    *table("scatter_add", {"method": lambda x: CONST.scatter_add(2, PICK, x[..., :2]),
                           "into zeros": zeros_then(lambda o,
                                                    x: o.scatter_add_(2, PICK, x[..., 1:3])),
                           "onto": lambda x: torch.scatter_add(x, 2, PICK, CONST)}, X),
    *table("masked_fill", {
        "number": lambda x: x.masked_fill(MASK, 2.0), "zero": lambda x: x.masked_fill(MASK, 0.0),
        "in place": lambda x: x.masked_fill_(MASK, -3.0),
        "function": lambda x: torch.masked_fill(x, MASK, 1),
        "tensor": lambda x: x.masked_fill(MASK, torch.tensor(1.5, dtype=torch.float64)),
        "keyword": lambda x: x.masked_fill(mask=MASK, value=2.0),
    }, X),
    *table("where", {
        "number": lambda x: torch.where(MASK, x, 1.0),
        "first": lambda x: torch.where(MASK, -2.0, x),
        "constant": lambda x: torch.where(MASK, CONST, x),
        "zero": lambda x: torch.where(MASK, x, 0.0),
        "method": lambda x: x.where(MASK, CONST),
        "keyword": lambda x: torch.where(condition=MASK, input=x, other=CONST),
    }, X),
    *table("where", {"both": lambda x, y: torch.where(MASK, x, y)}, X, Y),
    *table("fill", {"in place": lambda x: x[:, 0].fill_(2.0)[:, None] + x,
                    "function": lambda x: torch.fill(x, 1.5) + x}, X),
]  # fmt: skip


def through(write):
    """A write into a part of the input, through a view of it."""

    def call(x: Tensor, *rest: Tensor) -> Tensor:
        write(x[:, 1:], *rest)
        return 2 * x

    return call


THROUGH: list[Case] = [
    *table("add", {"through a view, number": through(lambda v: v.add_(1.5)),
                   "through a view, constant": through(lambda v: v.add_(ROW))}, X),
    *table("add", {"through a view": through(lambda v, y: v.add_(y[:, :2]))}, X, Y),
    *table("mul", {"through a view": through(lambda v: v.mul_(ROW))}, X),
    *table("zero", {"through a view": through(lambda v: v.zero_())}, X),
    *table("fill", {"through a view": through(lambda v: v.fill_(3.0))}, X),
    *table("copy_", {"through a view": through(lambda v, y: v.copy_(y[:, :2]))}, X, Y),
    *table("copy_", {"constant through a view": through(lambda v: v.copy_(ROW))}, X),
    *table("masked_fill", {"through a view": through(lambda v: v.masked_fill_(v > 0, -1))}, X,
           oracle=held(lambda z, x: 2 * torch.where(
               (x[0] > 0) & (torch.arange(3) > 0)[:, None], -1.0, z[0]))),
    *table("clamp", {"through a view": through(lambda v: v.clamp_(-0.5, 0.5))}, X, oracle=held(
        lambda z, x: 2 * torch.cat([z[0][:, :1], torch.where(
            x[0].abs() < 0.5, z[0], x[0].sign() / 2)[:, 1:]], 1))),
    *table("relu", {"through a view": through(lambda v: v.relu_())}, X, oracle=held(
        lambda z, x: 2 * torch.cat([z[0][:, :1], (z[0] * (x[0] > 0))[:, 1:]], 1))),
    *table("tanh", {"through a view": through(lambda v: v.tanh_())}, X, oracle=held(
        lambda z, x: 2 * torch.cat([z[0][:, :1], (z[0] * x[0].tanh() / x[0])[:, 1:]], 1))),
]  # fmt: skip

COMPLEX: list[Case] = [
    *table("complex", {"both": lambda x, y: torch.view_as_real(torch.complex(x, y))}, X, Y),
    *table("complex", {"constant": lambda x: torch.view_as_real(torch.complex(x, CONST))}, X),
    *table("mul", {"complex": lambda x, y: torch.view_as_real((x * (1 + 2j)) * (y * (2 - 1j)))},
           X, Y, oracle=halves),
    *table("exp", {"complex": lambda x: torch.view_as_real(torch.exp(x * (0.3 + 1j)))}, X,
           oracle=held(lambda z, x: torch.view_as_real(
               1 + (torch.exp(x[0] * (0.3 + 1j)) - 1) / x[0] * z[0]))),
    *table("tanh", {"complex": lambda x: torch.view_as_real(torch.tanh(x * (1 - 0.5j)))}, X,
           oracle=held(lambda z,
                       x: torch.view_as_real(torch.tanh(x[0] * (1 - 0.5j)) / x[0] * z[0]))),
    *table("pow", {"complex": lambda x: torch.view_as_real((x * (1 + 1j)) ** 2)}, X,
           oracle=held(lambda z, x: torch.view_as_real(x[0] * z[0] * 2j))),
]  # fmt: skip

CASES = VIEWS + JOINS + WRITES + THROUGH + COMPLEX
