"""Functions of each element alone, norms and spreads, and frozen coefficients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opcases.case import Case, draw, table
from oracle import diagonal, held, softmax_rows

X = draw(2, 3, 4)
POSITIVE = draw(2, 3, 4, low=0.2, high=3.0)
NARROW = draw(2, 3, 4, low=-0.9, high=2.0)
AT_ZERO = torch.tensor([[0.0, 0.5, -1.25, 0.0]], dtype=torch.float64)
COMPLEX = 1 + 2j


def spelled(name: str, *homes, inplace: bool = True) -> dict:
    """Function, method and in-place twins of the name, wherever torch has them."""
    found = {}
    for home in (torch, Tensor, F, torch.special, *homes):
        for twin in (name, name + "_") if inplace else (name,):
            func = getattr(home, twin, None)
            if callable(func):
                label = getattr(home, "__name__", "Tensor").rsplit(".", 1)[-1]
                found[f"{label}.{twin}"] = func
    return found


def anchored(root: float):
    """φ(x)/(x − r) · (x − r), φ(r) = 0."""

    def oracle(call, inputs):
        (x,) = inputs
        return held(lambda z, x: call(x[0].clone()) / (x[0] - root) * (z[0] - root))(call, (x,))

    return oracle


SMOOTH: list[Case] = [
    *(case for name in (
        "tanh sigmoid erf sin cos atan sinh asinh expm1 exp erfc cosh exp2 tanhshrink softsign "
        "logsigmoid softplus mish gelu silu elu hardsigmoid hardswish softshrink"
    ).split() for case in table(name, spelled(name), X, oracle=diagonal)),
    *(case for name in "sqrt log1p".split()
      for case in table(name, spelled(name), POSITIVE, oracle=diagonal)),
    *(case for name in "log log2 log10".split()
      for case in table(name, spelled(name), POSITIVE, oracle=anchored(1))),
    *table("log1p", {"negative": torch.log1p}, NARROW, oracle=diagonal),
    *table("gelu", {
        "module": nn.GELU(), "tanh": lambda x: F.gelu(x, approximate="tanh"),
        "tanh module": nn.GELU(approximate="tanh"), "keyword": lambda x: F.gelu(input=x),
    }, X, oracle=diagonal),
    *table("silu", {"module": nn.SiLU(), "in place": nn.SiLU(inplace=True),
                    "argument": lambda x: F.silu(x, True),
                    "keyword": lambda x: F.silu(input=x, inplace=True)}, X, oracle=diagonal),
    *table("elu", {
        "module": nn.ELU(0.7), "in place": nn.ELU(inplace=True),
        "argument": lambda x: F.elu(x, 0.5, True),
        "selu": F.selu, "selu module": nn.SELU(), "selu in place": nn.SELU(True),
        "torch.selu": torch.selu,
        "celu": lambda x: F.celu(x, 0.6), "celu module": nn.CELU(1.3),
        "celu in place": nn.CELU(inplace=True),
        "selu_": torch.selu_, "celu_": torch.celu_, "keyword": lambda x: F.elu(input=x, alpha=2.0),
    }, X, oracle=diagonal),
    *table("softplus", {"module": nn.Softplus(2.0, 1.0),
                        "function": lambda x: F.softplus(x, beta=3)},
           X, oracle=diagonal),
    *table("mish", {"module": nn.Mish(), "in place": nn.Mish(inplace=True)}, X, oracle=diagonal),
    *table("tanh", {"module": nn.Tanh()}, X, oracle=diagonal),
    *table("sigmoid", {"module": nn.Sigmoid(), "expit": torch.special.expit}, X, oracle=diagonal),
    *table("logsigmoid", {"module": nn.LogSigmoid()}, X, oracle=diagonal),
    *table("hardsigmoid", {"module": nn.Hardsigmoid(), "in place": nn.Hardsigmoid(inplace=True),
                           "argument": lambda x: F.hardsigmoid(x * 3, True)}, X, oracle=diagonal),
    *table("hardswish", {"module": nn.Hardswish(), "in place": nn.Hardswish(inplace=True),
                         "argument": lambda x: F.hardswish(3 * x, True)}, X, oracle=diagonal),
    *table("softshrink", {"module": nn.Softshrink(0.3), "wide": lambda x: F.softshrink(x, 1.0)},
           X, oracle=diagonal),
    *table("softsign", {"module": nn.Softsign()}, X, oracle=diagonal),
    *table("tanhshrink", {"module": nn.Tanhshrink()}, X, oracle=diagonal),
    *(Case(name, "at zero", getattr(torch, name, None) or getattr(F, name), (AT_ZERO,), diagonal,
           tolerance=1e-8)
      for name in "tanh sigmoid erf sin cos expm1 exp cosh gelu silu mish softplus hardsigmoid "
      "hardswish tanhshrink atan logsigmoid square".split()),
    *table("pow", {"third at zero": lambda x: x ** 3}, AT_ZERO, oracle=diagonal, tolerance=1e-8),
]  # fmt: skip

KINKED: list[Case] = [
    *table("relu", {**spelled("relu"), "module": nn.ReLU(),
                    "module in place": nn.ReLU(inplace=True),
                    "keyword": lambda x: F.relu(input=x, inplace=True)}, X, oracle=diagonal),
    *table("leaky_relu", {"function": F.leaky_relu, "slope": lambda x: F.leaky_relu(x, 0.3),
                          "module": nn.LeakyReLU(0.2), "in place": nn.LeakyReLU(0.1, inplace=True),
                          "leaky_relu_": lambda x: F.leaky_relu_(x, 0.4)}, X, oracle=diagonal),
    *table("rrelu", {"module": nn.RReLU().eval(), "function": F.rrelu, "torch": torch.rrelu,
                     "in place": nn.RReLU(inplace=True).eval()}, X, oracle=diagonal),
    *table("prelu", {"one": lambda x: F.prelu(x, torch.tensor([0.3]).double()),
                     "module": nn.PReLU(3, 0.4).double(), "method": lambda x: x.prelu(draw(3)),
                     "torch": lambda x: torch.prelu(x, draw(3, seed=1))}, X, oracle=diagonal),
    *table("abs", {**spelled("abs"), "absolute": torch.absolute,
                   "dunder": abs}, X, oracle=diagonal),
    *table("abs", {"complex": lambda x: (x * COMPLEX).abs()}, X, oracle=diagonal),
    *table("deg2rad", spelled("deg2rad"), X, oracle=diagonal),
    *table("rad2deg", spelled("rad2deg"), X, oracle=diagonal),
]  # fmt: skip

POWERS: list[Case] = [
    *table("square", {**spelled("square"), "reused": lambda x: x.square() + x}, X, oracle=diagonal),
    *table("pow", {
        "square": lambda x: x ** 2, "cube": lambda x: x ** 3, "method": lambda x: x.pow(2.0),
        "function": lambda x: torch.pow(x, 4), "one": lambda x: x ** 1,
        "in place": lambda x: x.pow_(2),
        "augmented": lambda x: x.__ipow__(3), "keyword": lambda x: torch.pow(input=x, exponent=2),
        "tensor": lambda x: x ** torch.tensor(2.0), "augmented square": lambda x: x.__ipow__(2),
    }, X, oracle=diagonal),
    *table("rpow", {"number": lambda x: 2 ** x, "dunder": lambda x: x.__rpow__(0.5)}, X,
           oracle=diagonal),
    *table("pow", {"of a number": lambda x: torch.pow(3.0, x),
                   "of a tensor": lambda x: torch.tensor(2.0).double() ** x}, X, oracle=diagonal),
    *table("pow", {"root": lambda x: x ** 0.5, "in place root": lambda x: x.pow_(0.5),
                   "odd": lambda x: x.pow(1.7)}, POSITIVE, oracle=diagonal),
    *table("pow", {"inverse": lambda x: x * x ** -1}, POSITIVE,
           oracle=held(lambda z, x: z[0] / x[0])),
    *table("pow", {"inverse root": lambda x: x * x.pow(-0.5)}, POSITIVE,
           oracle=held(lambda z, x: z[0] * x[0] ** -0.5)),
    *table("pow", {"nought": lambda x: x * x ** 0}, POSITIVE, oracle=held(lambda z, x: z[0])),
]  # fmt: skip


def times(phi):
    """x ⟦φ(x)⟧: a frozen coefficient shows itself as a factor."""
    return held(lambda z, x: z[0] * phi(x[0]))


COEFFICIENTS: list[Case] = [
    *(case for name in "rsqrt reciprocal log log2 log10".split()
      for case in table(name, {"factor": lambda x, n=name: x * getattr(torch, n)(x),
                               "method": lambda x, n=name: getattr(x, n)() * x},
                        POSITIVE, oracle=times(getattr(torch, name)))),
    *table("logsumexp", {"factor": lambda x: x * torch.logsumexp(x, 2, True),
                         "method": lambda x: x * x.logsumexp(dim=2, keepdim=True)}, POSITIVE,
           oracle=times(lambda x: x.exp().sum(2, keepdim=True).log())),
    *(case for name in "sign sgn floor ceil round trunc frac".split()
      for case in table(name, {"factor": lambda x, n=name: x * getattr(torch, n)(x),
                               "method": lambda x, n=name: getattr(x, n)() * x},
                        X, oracle=times(getattr(torch, name)))),
    *table("softmax", {
        "factor": lambda x: x * torch.softmax(x, -1), "method": lambda x: x.softmax(2) * x,
        "function": lambda x: x * F.softmax(x, dim=-1), "module": lambda x: nn.Softmax(-1)(x) * x,
        "special": lambda x: torch.special.softmax(x, 2) * x,
        "keyword": lambda x: F.softmax(input=x, dim=-1) * x,
    }, X, oracle=times(softmax_rows)),
    *table("softmax", {"softmin": lambda x: F.softmin(x, -1) * x}, X,
           oracle=times(lambda x: softmax_rows(-x))),
    *table("softmax", {"plus constant": lambda x: x + x.softmax(1)}, X,
           oracle=held(lambda z, x: z[0] + x[0].softmax(1))),
    *table("log_softmax", {
        "function": lambda x: F.log_softmax(x, -1), "torch": lambda x: torch.log_softmax(x, dim=2),
        "method": lambda x: x.log_softmax(-1), "module": nn.LogSoftmax(2),
    }, X, oracle=held(lambda z, x: z[0] - x[0].exp().sum(2, keepdim=True).log())),
]  # fmt: skip


def root(dims: tuple[int, ...], keepdim: bool = False):
    """‖x‖ = Σ ⟦x/‖x‖⟧ x."""

    def g(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
        size = x[0].square().sum(dims, keepdim=True).sqrt()
        return (z[0] * x[0] / size).sum(dims, keepdim=keepdim)

    return held(g)


def spread(dims: tuple[int, ...], correction: float = 1, power: float = 1, keepdim: bool = False):
    """var = Σ ⟦(x − μ)/n⟧ x; std is that over ⟦std⟧."""

    def g(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
        n = 1
        for d in dims:
            n *= x[0].shape[d]
        centred = x[0] - x[0].mean(dims, keepdim=True)
        var = centred.square().sum(dims, keepdim=True) / (n - correction)
        total = (z[0] * centred).sum(dims, keepdim=True) / (n - correction)
        total = total / var.sqrt() if power == 0.5 else total
        return total if keepdim else total.sum(dims)

    return held(g)


SPREADS: list[Case] = [
    *table("norm", {
        "method": lambda x: x.norm(dim=-1), "two": lambda x: x.norm(2, 2),
        "function": lambda x: torch.norm(x, p=2, dim=2),
        "vector": lambda x: torch.linalg.vector_norm(x, dim=2),
        "linalg": lambda x: torch.linalg.norm(x, dim=-1),
        "ord": lambda x: torch.linalg.norm(x, 2, -1),
    }, X, oracle=root((2,))),
    *table("norm", {"dims": lambda x: x.norm(dim=(1, 2), keepdim=True),
                    "frobenius": lambda x: torch.norm(x, "fro", (1, 2), True),
                    "vector dims": lambda x: torch.linalg.vector_norm(x, 2, (1, 2), keepdim=True)},
           X, oracle=root((1, 2), True)),
    *table("norm", {"matrix": torch.linalg.matrix_norm}, X, oracle=root((1, 2))),
    *table("norm", {"all": lambda x: x.norm(), "vector all": torch.linalg.vector_norm}, X,
           oracle=root((0, 1, 2)), samples=False),
    *table("norm", {"one": lambda x: x / x.norm(1, -1, keepdim=True)}, X,
           oracle=held(lambda z, x: z[0] / x[0].abs().sum(-1, keepdim=True))),
    *table("var", {"method": lambda x: x.var(1), "function": lambda x: torch.var(x, dim=1),
                   "correction": lambda x: x.var(dim=1, correction=1)}, X, oracle=spread((1,))),
    *table("var", {"biased": lambda x: x.var(-1, unbiased=False, keepdim=True),
                   "positional": lambda x: torch.var(x, 2, False, True),
                   "keyword": lambda x: torch.var(input=x, dim=(2,), correction=0, keepdim=True)},
           X, oracle=spread((2,), 0, keepdim=True)),
    *table("var", {"all": lambda x: x.var(), "unbiased": lambda x: x.var(True)}, X,
           oracle=spread((0, 1, 2)), samples=False),
    *table("std", {"method": lambda x: x.std(1), "function": lambda x: torch.std(x, 1)}, X,
           oracle=spread((1,), power=0.5)),
    *table("std", {"biased": lambda x: x.std((1, 2), unbiased=False, keepdim=True)}, X,
           oracle=spread((1, 2), 0, 0.5, True)),
    *table("std", {"all": lambda x: x.std()}, X, oracle=spread((0, 1, 2), power=0.5),
           samples=False),
]  # fmt: skip

CASES = SMOOTH + KINKED + POWERS + COEFFICIENTS + SPREADS
