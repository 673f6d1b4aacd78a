"""Products and quotients: half of each, or the bounded factor frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opcases.case import Case, draw, table
from opcases.linear import seeded
from oracle import halves, held, only

X = draw(2, 3, 4)
Y = draw(2, 3, 4, seed=1)
CONST = draw(2, 3, 4, seed=2)
ROW = draw(4, seed=3)
POSITIVE = draw(2, 3, 4, low=0.3, high=2.0, seed=4)
LEFT, RIGHT = draw(2, 3, 4, seed=5), draw(2, 4, 2, seed=6)
MATRIX = draw(4, 5, seed=7)


def first(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
    return z[0] / x[1]


ELEMENTWISE: list[Case] = [
    *table("mul", {
        "two": lambda x, y: x * y, "function": torch.mul, "multiply": lambda x, y: x.multiply(y),
        "in place": lambda x, y: x.mul_(y), "augmented": lambda x, y: x.__imul__(y),
        "keyword": lambda x, y: torch.mul(input=x, other=y), "one row": lambda x, y: x * y[:, :1],
        "column": lambda x, y: x.mean(2, keepdim=True) * y,
    }, X, Y, oracle=halves),
    *table("mul", {
        "constant": lambda x: x * CONST, "constant first": lambda x: CONST * x,
        "number": lambda x: 3 * x,
        "row": lambda x: x.mul(ROW), "constant in place": lambda x: x.mul_(ROW),
        "augmented number": lambda x: x.__imul__(2.0),
        "into constant": lambda x: CONST.clone().mul_(x), "integers": lambda x: x * torch.arange(4),
        "mask": lambda x: x * (torch.arange(4) > 1), "scale shift": lambda x: x * ROW + CONST,
    }, X),
    *table("mul", {"itself": lambda x: x * x, "itself in place": lambda x: x.mul_(x),
                   "itself augmented": lambda x: x.__imul__(x)}, X,
           oracle=held(lambda z, x: z[0] * x[0])),
    *table("mul", {"gate": lambda x, g: x * g.sigmoid(),
                   "gate first": lambda x, g: torch.sigmoid(g) * x,
                   "gate in place": lambda x, g: x.mul_(g.sigmoid()),
                   "gate augmented": lambda x, g: x.__imul__(torch.sigmoid(g)),
                   "hard gate": lambda x, g: x * g.softmax(1)}, X, Y, oracle=only(0)),
    *table("mul", {"tanh": lambda x, g: x * torch.tanh(g),
                   "scaled gate": lambda x, g: x * (2 * g.tanh()),
                   "tanh with sigmoid": lambda x, g: torch.tanh(x) * 0 + x * g.sigmoid()}, X, Y,
           oracle=only(0)),
    *table("mul", {"sigmoid and tanh": lambda x, g: torch.tanh(x) * torch.sigmoid(g)}, X, Y,
           oracle=held(lambda z, x: z[0] * x[0].tanh() / x[0] * x[1].sigmoid())),
    *table("mul", {"three": lambda x, y: x * y * x}, X, Y,
           oracle=held(lambda z, x: (z[0] * x[1] * x[0] + x[0] * z[1] * x[0]) / 4
                       + x[0] * x[1] * z[0] / 2)),
    *table("mul", {"swiglu": lambda x, y: F.silu(x) * y}, X, Y,
           oracle=held(lambda z,
                       x: (z[0] * x[0].sigmoid() * x[1] + x[0] * x[0].sigmoid() * z[1]) / 2)),
    *table("addcmul", {"both": lambda x, y: torch.addcmul(CONST, x, y, value=0.5),
                       "method": lambda x, y: CONST.addcmul(x, y)}, X, Y, oracle=halves),
    *table("addcmul", {"constant factor": lambda x: torch.addcmul(CONST, x, ROW),
                       "carried base": lambda x: x.addcmul(CONST, ROW, value=2),
                       "in place": lambda x: x.addcmul_(CONST, ROW)}, X),
    *table("lerp", {"number": lambda x, y: torch.lerp(x, y, 0.3),
                    "tensor": lambda x, y: x.lerp(y, ROW),
                    "in place": lambda x, y: x.lerp_(y, 0.3)}, X, Y),
    *table("lerp", {"constant end": lambda x: torch.lerp(x, CONST, 0.25),
                    "constant start": lambda x: torch.lerp(CONST, x, ROW)}, X),
    *table("lerp", {"gate": lambda x, y: torch.lerp(x, CONST, y.sigmoid())}, X, Y,
           oracle=held(lambda z, x: z[0] + x[1].sigmoid() * (CONST - z[0]))),
]  # fmt: skip

QUOTIENTS: list[Case] = [
    *table("div", {
        "two": lambda x, s: x / s, "function": torch.div, "divide": torch.divide,
        "in place": lambda x, s: x.div_(s),
        "augmented": lambda x, s: x.__itruediv__(s), "true_divide": lambda x, s: x.true_divide(s),
        "keyword": lambda x, s: torch.div(input=x, other=s),
    }, X, POSITIVE, oracle=held(first)),
    *table("div", {"constant": lambda x: x / POSITIVE, "number": lambda x: x / 4,
                   "row": lambda x: x.div(ROW),
                   "constant in place": lambda x: x.div_(ROW),
                   "augmented number": lambda x: x.__itruediv__(2)}, X),
    *table("div", {"one over": lambda x: x * (1 / x), "rdiv": lambda x: x * x.__rtruediv__(1),
                   "constant over": lambda x: x * (torch.ones(4).double() / x)}, POSITIVE,
           oracle=held(lambda z, x: z[0] / x[0])),
    *table("div", {"constant over in place": lambda x: x * torch.ones(2, 3, 4).double().div_(x),
                   "constant over augmented": lambda x: x * CONST.new_ones(2, 3,
                       4).__itruediv__(x)},
           POSITIVE, oracle=held(lambda z, x: z[0] / x[0])),
    *table("div", {"by itself": lambda x: x + x / x}, POSITIVE, oracle=held(lambda z, x: z[0] + 1)),
    *table("div",
           {"root mean square": lambda x: x / x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()}, X,
           oracle=held(lambda z, x: z[0] / (x[0].square().mean(-1, keepdim=True) + 1e-6).sqrt())),
]  # fmt: skip

MATRICES: list[Case] = [
    *table("matmul", {"two": lambda a, b: a @ b, "function": torch.matmul,
                      "keyword": lambda a, b: torch.matmul(input=a, other=b)}, LEFT, RIGHT,
                      oracle=halves),
    *table("matmul", {
        "constant": lambda x: x @ MATRIX, "constant first": lambda x: draw(5, 3) @ x,
        "vector": lambda x: x @ ROW, "batched": lambda x: torch.matmul(draw(2, 2, 3), x),
        "dunder": lambda x: x.__matmul__(MATRIX), "adjacency": lambda x: draw(3, 3) @ x,
        "rmatmul": lambda x: MATRIX.T.__matmul__(x.mT),
    }, LEFT),
    *table("matmul", {"mm": lambda x: torch.mm(x, MATRIX), "mv": lambda x: x.mv(ROW),
                      "mm first": lambda x: torch.mm(draw(2, 3), x)}, draw(3, 4), samples=False),
    *table("matmul", {"dot": torch.dot}, ROW, draw(4, seed=8), oracle=halves, samples=False),
    *table("matmul", {"attention": lambda a, v: a.softmax(-1) @ v}, LEFT, RIGHT, oracle=only(1)),
    *table("matmul", {"itself": lambda x: x @ x.mT}, LEFT,
           oracle=held(lambda z, x: (z[0] @ x[0].mT + x[0] @ z[0].mT) / 2)),
    *table("bmm", {"two": torch.bmm, "method": lambda a, b: a.bmm(b)}, LEFT, RIGHT, oracle=halves),
    *table("bmm", {"constant": lambda x: torch.bmm(x, RIGHT),
                   "mat2": lambda x: torch.bmm(x, mat2=RIGHT)}, LEFT),
    *table("einsum", {"two": lambda a, b: torch.einsum("bij,bjk->bik", a, b),
                      "list": lambda a, b: torch.einsum("bij,bjk->bk", [a, b]),
                      "ellipsis": lambda a, b: torch.einsum("...ij,...jk->...ik", a, b)},
           LEFT, RIGHT, oracle=halves),
    *table("einsum", {"one": lambda x: torch.einsum("bij->bji", x), "trace": lambda x: torch.einsum(
        "bii->b", x[:, :, :3]), "diagonal": lambda x: torch.einsum("bii->bi", x[:, :, :3]),
        "constant": lambda x: torch.einsum("bij,jk->bik", x, MATRIX),
        "sum": lambda x: torch.einsum("bij->b", x),
        "constant first": lambda x: torch.einsum("kj,bij->bki", MATRIX.T, x),
        "constants": lambda x: torch.einsum("bij,jk,kj->bi", x, MATRIX, MATRIX.T),
        "implicit": lambda x: torch.einsum("bij,j", x, ROW)}, LEFT),
    *table("einsum", {"attention": lambda a, v: torch.einsum("bij,bjk->bik", a.softmax(-1), v)},
           LEFT, RIGHT, oracle=only(1)),
    *table("einsum", {"three": lambda a, b: torch.einsum("bij,bjk,j->bik", a, b, ROW)}, LEFT, RIGHT,
           oracle=halves),
    *table("einsum", {"itself": lambda x: torch.einsum("bij,bkj->bik", x, x)}, LEFT,
           oracle=held(lambda z, x: (z[0] @ x[0].mT + x[0] @ z[0].mT) / 2)),
    *table("baddbmm", {"both": lambda a, b: torch.baddbmm(CONST[..., :2], a, b, beta=0.5, alpha=2),
                       "method": lambda a, b: CONST[..., :2].baddbmm(a, b)}, LEFT, RIGHT,
                       oracle=halves),
    *table("baddbmm", {"constant factor": lambda x: torch.baddbmm(CONST[..., :2], x, RIGHT, beta=2),
                       "carried base": lambda x: torch.baddbmm(x, CONST[:, :, :2], RIGHT.mT,
                           alpha=0.5)}, LEFT),
    *table("addmm", {"both": lambda a, b: torch.addmm(ROW, a, b, beta=3)}, draw(2, 3), draw(3, 4),
           oracle=halves, samples=False),
    *table("addmm", {"bias": lambda x: torch.addmm(draw(5), x, MATRIX),
                     "scaled": lambda x: torch.addmm(draw(5), x, MATRIX, beta=0.5, alpha=-2),
                     "carried base": lambda x: x.addmm(draw(3, 2), draw(2, 4)),
                     "in place": lambda x: x.addmm_(draw(3, 2), draw(2, 4), alpha=2),
                     "carried base and factor": lambda x: torch.addmm(x, x[:, :2], draw(2, 4))},
           draw(3, 4)),
    *table("addbmm", {"constant factor": lambda x: torch.addbmm(CONST[0, :, :2], x, RIGHT)}, LEFT,
           samples=False),
    *table("addbmm", {"both": lambda a, b: torch.addbmm(CONST[0, :, :2], a, b, alpha=0.5)}, LEFT,
           RIGHT,
           oracle=halves, samples=False),
]  # fmt: skip

EXPERTS, ENDS = draw(2, 4, 4, seed=9).float(), torch.tensor([2, 5], dtype=torch.int32)


def by_group(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
    rows = z[0].float()
    return torch.cat([rows[:2] @ EXPERTS[0], rows[2:] @ EXPERTS[1]]).double()


FORM = seeded(nn.Bilinear(4, 3, 2))


def similarity(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
    """Half of each normalised vector, the lengths held."""
    size = [t.square().sum(-1, keepdim=True).sqrt() for t in x]
    return ((z[0] * x[1] + x[0] * z[1]) / (2 * size[0] * size[1])).sum(-1)


FORMS: list[Case] = [
    *table("glu", {"function": F.glu, "module": nn.GLU(),
                   "method": lambda x: F.glu(input=x, dim=2)},
           X, oracle=held(lambda z, x: z[0][..., :2] * x[0][..., 2:].sigmoid())),
    *table("glu", {"dim": lambda x: F.glu(x, 1)}, draw(2, 4, 3),
           oracle=held(lambda z, x: z[0][:, :2] * x[0][:, 2:].sigmoid())),
    *table("bilinear", {"module": FORM, "function": lambda a, b: F.bilinear(
        a, b, FORM.weight, FORM.bias)}, draw(2, 4), draw(2, 3), oracle=halves),
    *table("bilinear", {"constant": lambda x: FORM(x, draw(2, 3))}, draw(2, 4)),
    *table("cosine_similarity", {"function": lambda a, b: F.cosine_similarity(a, b, dim=-1),
                                 "torch": lambda a, b: torch.cosine_similarity(a, b, 2),
                                 "module": nn.CosineSimilarity(2)}, X, Y, oracle=held(similarity)),
    *table("outer", {"function": torch.outer, "ger": torch.ger}, draw(3), draw(4), oracle=halves,
           samples=False),
    *table("outer", {"constant": lambda x: torch.outer(x, ROW)}, draw(3), samples=False),
    *table("inner", {"two": torch.inner}, draw(3, 4), draw(2, 4), oracle=halves, samples=False),
    *table("inner", {"constant": lambda x: x.inner(ROW)}, X),
    *table("tensordot", {"constant": lambda x: torch.tensordot(x, MATRIX, 1),
                         "dims": lambda x: torch.tensordot(x, MATRIX, dims=([2], [0]))}, X),
    *table("tensordot", {"two": lambda a, b: torch.tensordot(a, b, 1)}, draw(2, 3), draw(3, 4),
           oracle=halves, samples=False),
    *table("kron", {"two": torch.kron}, draw(2, 3), draw(2, 2), oracle=halves, samples=False),
]  # fmt: skip

# The kernel knows single precision alone.
GROUPED: list[Case] = [
    *table("_grouped_mm", {
        "experts": lambda x: F.grouped_mm(x.float(), EXPERTS, offs=ENDS).double(),
        "private": lambda x: torch._grouped_mm(x.float(), EXPERTS, offs=ENDS).double(),
    }, draw(5, 4), oracle=held(by_group), tolerance=1e-5),
]  # fmt: skip

CASES = ELEMENTWISE + QUOTIENTS + MATRICES + FORMS + GROUPED
