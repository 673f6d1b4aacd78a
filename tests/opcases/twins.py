"""Operators that are others put together, distances, frames and linear systems."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.engine.trace.spelling import spellings
from opcases.case import Case, draw, table
from opcases.pointwise import anchored
from oracle import diagonal, halves, held

X, Y = draw(2, 3, 4), draw(2, 3, 4, seed=1)
POSITIVE = draw(2, 3, 4, low=0.2, high=3.0)
INSIDE = draw(2, 3, 4, low=0.05, high=0.9)
ROW, MATRIX, SQUARE = draw(4, seed=3), draw(4, 5, seed=7), draw(4, 4, seed=5)
LINE = draw(2, 4, 9)
TRIANGLE = SQUARE.tril() + 3 * torch.eye(4).double()


def every(operator: str, name: str, *inputs: Tensor, args=(), also=lambda y: y, **options):
    """All spellings of a name: ``also`` is what a model does with the result."""
    found: dict[str, Callable[..., Tensor]] = {}
    for func, _ in spellings(name):
        home = "T" if func in vars(torch._C.TensorBase).values() else "f"
        label = f"{home}.{func.__name__} {name}"
        found[label] = lambda *x, f=func: also(f(*(t * 1 for t in x), *args))
    return table(operator, found, *inputs, **options)


def factor(operator: str, name: str, x: Tensor, *, phi: Callable[[Tensor], Tensor], args=()):
    """x ⟦φ(x)⟧ in all spellings: a frozen coefficient shows itself as a factor."""
    found = {}
    for func, _ in spellings(name):
        home = "T" if func in vars(torch._C.TensorBase).values() else "f"
        found[f"{home}.{func.__name__} {name}"] = lambda x, f=func: x * f(x * 1, *args)
    return table(operator, found, x, oracle=held(lambda z, x: z[0] * phi(x[0])))


def quiet(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A spelling that torch has deprecated, without its warning."""

    def spelled(*x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(*x)

    return spelled


def drawn(x: Tensor) -> Tensor:
    """Gumbel noise from one seed, whatever the state of the generator."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    out = F.gumbel_softmax(x, dim=-1)
    torch.random.set_rng_state(state)
    return out


ELEMENTS: list[Case] = [
    *(case for name in "tan asin arcsin acos arccos atanh arctanh erfinv sinc".split()
      for case in every({"arcsin": "asin", "arccos": "acos", "arctanh": "atanh"}.get(name, name),
                        name, INSIDE, oracle=diagonal)),
    *(case for name in "arctan arcsinh".split()
      for case in every({"arctan": "atan", "arcsinh": "asinh"}[name], name, X, oracle=diagonal)),
    *(case for name in "erfcx ndtr log_ndtr".split()
      for case in every(name, name, X, oracle=diagonal)),
    *every("entr", "entr", POSITIVE, oracle=diagonal),
    *every("logit", "logit", INSIDE, oracle=anchored(0.5)),
    *every("ndtri", "ndtri", INSIDE, oracle=anchored(0.5)),
    *(case for name in "acosh arccosh".split()
      for case in every("acosh", name, 1 + POSITIVE, oracle=anchored(1))),
    *table("log", {"of itself": lambda x: x * (x * 2).log()}, POSITIVE,
           oracle=held(lambda z, x: z[0] * (2 * x[0]).log())),
    *table("log", {"gate": lambda x: torch.sigmoid(x) * x.log()}, POSITIVE, oracle=held(
        lambda z, x: (0.5 + (x[0].sigmoid() - 0.5) / x[0] * z[0]) * x[0].log())),
    *table("log", {"one plus": lambda x: (1 + x).log()}, POSITIVE, oracle=diagonal),
    *table("log", {"times a number": lambda x: 2 * x.log() + x},
           POSITIVE, oracle=held(lambda z, x: 2 * x[0].log() / (x[0] - 1) * (z[0] - 1) + z[0])),
    *(case for name in "digamma psi".split()
      for case in factor("digamma", name, POSITIVE, phi=torch.digamma)),
    *table("prelu", {"at zero": lambda x: F.prelu(x, torch.tensor([0.3]).double())},
           torch.tensor([[0.0, 1.0, -2.0]]).double(),
           oracle=held(lambda z, x: torch.where(x[0] > 0, 1.0, 0.3).double() * z[0])),
    *every("pow", "float_power", POSITIVE, args=(3,), oracle=diagonal),
    *(case for name in "remainder fmod __mod__".split()
      for case in every("remainder" if name != "fmod" else name, name, X, args=(0.7,),
                        oracle=held(lambda z, x, n=name: z[0] - x[0] + (
                            torch.fmod if n == "fmod" else torch.remainder)(x[0], 0.7)))),
    *table("remainder", {"T.__rmod__": lambda x: x * x.__rmod__(3.0)}, POSITIVE,
           oracle=held(lambda z, x: z[0] * torch.remainder(3.0, x[0]))),
    *table("remainder", {"T.__imod__": lambda x: x.__imod__(0.7)}, X,
           oracle=held(lambda z, x: z[0] - x[0] + torch.remainder(x[0], 0.7))),
    *(case for name in "floor_divide __floordiv__ __rfloordiv__".split()
      for case in factor("floor_divide", name, POSITIVE, args=(0.3,), phi=lambda x, n=name: (
          (0.3 / x) if n == "__rfloordiv__" else (x / 0.3)).floor())),
    *table("floor_divide", {"T.__ifloordiv__": lambda x: x * (x * 1).__ifloordiv__(0.3)}, POSITIVE,
           oracle=held(lambda z, x: z[0] * (x[0] / 0.3).floor())),
    *factor("trunc", "fix", X, phi=torch.trunc),
    *factor("heaviside", "heaviside", X, args=(torch.tensor(0.5).double(),),
            phi=lambda x: (x > 0).double()),
    *(case for name in "atan2 arctan2".split()
      for case in factor("atan2", name, X, args=(ROW,), phi=lambda x: torch.atan2(x, ROW))),
    *factor("logaddexp", "logaddexp", X, args=(ROW,), phi=lambda x: (x.exp() + ROW.exp()).log()),
    *factor("logaddexp2", "logaddexp2", X, args=(ROW,),
            phi=lambda x: (2 ** x + 2 ** ROW).log2()),
    *factor("logcumsumexp", "logcumsumexp", X, args=(1,), phi=lambda x: x.exp().cumsum(1).log()),
    *every("copysign", "copysign", X, args=(ROW,), oracle=held(
        lambda z, x: z[0] * x[0].sign() * ROW.sign())),
    *every("hypot", "hypot", X, Y, oracle=held(lambda z, x: (
        z[0] * x[0] + z[1] * x[1]) / (x[0].square() + x[1].square()).sqrt())),
    *every("xlogy", "xlogy", POSITIVE, Y.abs(), oracle=held(lambda z, x: z[0] * x[1].log())),
    *every("xlog1py", "xlog1py", X, Y.abs(), oracle=held(
        lambda z, x: (z[0] * x[1].log1p() + x[0] * x[1].log1p() / x[1] * z[1]) / 2)),
    *table("gumbel_softmax", {"seeded": lambda x: x * drawn(x)}, X,
           oracle=held(lambda z, x: z[0] * drawn(x[0]))),
    *every("ldexp", "ldexp", X, args=(torch.tensor(2),)),
]  # fmt: skip


def normalised(p: float):
    """Σ ⟦∂‖x‖/∂x⟧ x over the last dimension, written out."""

    def g(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
        (x,) = x
        size = x.abs()
        if p in (float("inf"), -float("inf")):
            bound = size.amax(-1, keepdim=True) if p > 0 else size.amin(-1, keepdim=True)
            return (z[0] * x.sign() * (size == bound)).sum(-1)
        norm = size.pow(p).sum(-1, keepdim=True) ** (1 / p)
        return (z[0] * x.sign() * (size / norm) ** (p - 1)).sum(-1)

    return held(g)


def singular(power: int):
    """Σ u vᵀ over all singular values, or for the largest alone."""

    def g(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
        u, s, v = torch.linalg.svd(x[0], full_matrices=False)
        rank = s.shape[-1] if power == 1 else 1
        return (z[0] * (u[..., :rank] @ v[..., :rank, :])).sum((-2, -1))

    return held(g)


def pairs(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
    """All Euclidean distances between rows of two sets."""
    far = x[0].unsqueeze(-2) - x[1].unsqueeze(-3)
    moved = z[0].unsqueeze(-2) - z[1].unsqueeze(-3)
    return (far * moved).sum(-1) / far.square().sum(-1).sqrt()


def apart(p: float, eps: float = 0.0):
    """Σ ⟦|d|^(p−1) sign d / ‖d‖^(p−1)⟧ d for d = x − y + ε over the last dimension."""

    def g(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
        return normed_over(z[0] - z[1] + eps, x[0] - x[1] + eps, p)

    return held(g)


def normed_over(z: Tensor, x: Tensor, p: float) -> Tensor:
    norm = x.abs().pow(p).sum(-1, keepdim=True) ** (1 / p)
    return (z * x.sign() * (x.abs() / norm) ** (p - 1)).sum(-1)


OTHER = draw(2, 5, 4, seed=9)
DISTANCES: list[Case] = [
    *(case for p in (1, 3, 1.5, float("inf"), -float("inf")) for case in table("norm", {
        f"order {p}": lambda x, p=p: torch.norm(x, p, -1),
        f"vector order {p}": lambda x, p=p: torch.linalg.vector_norm(x, p, -1),
    }, X, oracle=normalised(p))),
    *table("norm", {"zero": lambda x: x * torch.linalg.vector_norm(x, 0, -1, keepdim=True)}, X,
           oracle=held(lambda z, x: 4 * z[0])),
    *table("norm", {"nuclear": lambda x: torch.linalg.matrix_norm(x, "nuc"),
                    "nuclear of norm": lambda x: torch.norm(x, "nuc", (1, 2))}, X,
           oracle=singular(1)),
    *table("norm", {"spectral": lambda x: torch.linalg.matrix_norm(x, 2)}, X, oracle=singular(2)),
    *table("nuclear_norm", {"torch": quiet(lambda x: torch.nuclear_norm(x, (1, 2)))}, X,
           oracle=singular(1)),
    *table("frobenius_norm", {"torch": quiet(lambda x: torch.frobenius_norm(x, 2))}, X,
           oracle=normalised(2)),
    *table("cdist", {"two": torch.cdist, "keyword": lambda x, y: torch.cdist(x1=x, x2=y, p=2.0)},
           X, OTHER, oracle=held(pairs)),
    *table("cdist", {"constant": lambda x: torch.cdist(x, OTHER)}, X,
           oracle=held(lambda z, x: pairs((z[0], OTHER), (x[0], OTHER)))),
    *table("cdist", {"constant first": lambda x: torch.cdist(OTHER[0], x)}, X,
           oracle=held(lambda z, x: pairs((OTHER[0], z[0]), (OTHER[0], x[0])))),
    *(case for p in (1.0, 3.0) for case in table("cdist", {
        f"order {p}": lambda x, y, p=p: torch.cdist(x, y, p)}, X, OTHER,
        oracle=held(lambda z, x, p=p: normed_over(
            z[0][:, :, None] - z[1][:, None], x[0][:, :, None] - x[1][:, None], p)))),
    *table("pairwise_distance", {"function": F.pairwise_distance, "torch": torch.pairwise_distance,
                                 "module": nn.PairwiseDistance()}, X, Y, oracle=apart(2, 1e-6)),
    *table("pairwise_distance", {"one": lambda x, y: F.pairwise_distance(x, y, 1, 0.0)}, X, Y,
           oracle=apart(1)),
    *table("dist", {"torch": torch.dist, "T": lambda x, y: x.dist(y)}, X, Y, samples=False,
           oracle=held(lambda z, x: normed_over((z[0] - z[1]).reshape(-1),
                                                (x[0] - x[1]).reshape(-1), 2))),
    *table("pdist", {"function": F.pdist, "torch": torch.pdist}, draw(3, 4), samples=False,
           oracle=held(lambda z, x: torch.stack([
               normed_over(z[0][i] - z[0][j], x[0][i] - x[0][j], 2)
               for i in range(3) for j in range(i + 1, 3)]))),
    *every("renorm", "renorm", X, args=(2, 0, 2.5), samples=False, oracle=held(lambda z, x: z[0] * (
        2.5 / x[0].square().sum((1, 2), keepdim=True).sqrt()).clamp(max=1)), tolerance=1e-6),
]  # fmt: skip


def moments(power: float, n: int):
    def g(z: tuple[Tensor, ...], x: tuple[Tensor, ...]) -> Tensor:
        centred = x[0] - x[0].mean(1, keepdim=True)
        var = centred.square().sum(1) / n
        return (z[0] * centred).sum(1) / n / var**power + z[0].mean(1)

    return held(g)


MOMENTS: list[Case] = [
    case for name, power in (("var_mean", 0), ("std_mean", 0.5)) for case in [
        *table(name, {
            "dim": lambda x, n=name: sum(getattr(torch, n)(x, 1)),
            "keyword": lambda x, n=name: sum(getattr(torch, n)(x, dim=1, keepdim=True)).squeeze(1),
        }, X, oracle=moments(power, 2)),
        *table(name, {
            "biased": lambda x, n=name: sum(getattr(torch, n)(x, 1, False)),
            "correction": lambda x, n=name: sum(getattr(torch, n)(x, dim=[1], correction=0)),
        }, X, oracle=moments(power, 3)),
    ]
]  # fmt: skip


def covariance(z: Tensor, x: Tensor) -> Tensor:
    z, x = (t - t.mean(1, keepdim=True) for t in (z, x))
    return (z @ x.T + x @ z.T) / 2 / (x.shape[1] - 1)


PRODUCTS: list[Case] = [
    *every("addcdiv", "addcdiv", X, Y, POSITIVE, oracle=held(lambda z, x: z[0] + z[1] / x[2])),
    *table("addcdiv", {"value": lambda x, y: torch.addcdiv(x, y, POSITIVE, value=0.5),
                       "in place value": lambda x, y: x.addcdiv_(y, POSITIVE, value=0.5)}, X, Y),
    *table("addmv", {"torch": lambda x: torch.addmv(ROW, SQUARE, x),
                     "T": lambda x: x.addmv(SQUARE, ROW, beta=2), "T_": lambda x: x.addmv_(
                         SQUARE, ROW, beta=0.5, alpha=2), "torch_": lambda x: torch.addmv_(
                         x, SQUARE, ROW)}, draw(4), samples=False),
    *table("addr", {"torch": lambda x: torch.addr(SQUARE, x, ROW),
                    "T": lambda x: SQUARE.addr(x, ROW, alpha=3),
                    "T_": lambda x: SQUARE.clone().addr_(x, ROW)}, draw(4), samples=False),
    *table("vdot", {"torch": torch.vdot, "T": lambda a, b: a.vdot(b)}, ROW, draw(4, seed=8),
           oracle=halves, samples=False),
    *table("vecdot", {"linalg": torch.linalg.vecdot}, X, Y, oracle=halves),
    *table("multi_dot", {"linalg": lambda x: torch.linalg.multi_dot([x, SQUARE, MATRIX]),
                         "chain": quiet(lambda x: torch.chain_matmul(x, SQUARE, MATRIX))},
           draw(3, 4), samples=False),
    *table("cross", {"torch": quiet(torch.cross), "T": quiet(lambda a, b: a.cross(b)),
                     "dim": lambda a, b: torch.cross(a, b, dim=-1),
                     "linalg": torch.linalg.cross}, draw(2, 3), draw(2, 3, seed=1), oracle=halves),
    *table("cross", {"first dimension": quiet(torch.cross)}, draw(3, 3), draw(3, 3, seed=1),
           oracle=halves, samples=False),
    *table("polar", {"torch": lambda a, t: torch.view_as_real(torch.polar(a, t))}, POSITIVE, ROW,
           samples=False, oracle=held(lambda z, x: torch.stack([
               (z[0] * x[1].cos() + x[0] * (1 + z[1] * (x[1].cos() - 1) / x[1])) / 2,
               (z[0] * x[1].sin() + x[0] * z[1] * x[1].sin() / x[1]) / 2], -1))),
    *table("cov", {"torch": torch.cov, "T": lambda x: x.cov()}, draw(3, 4), samples=False,
           oracle=held(lambda z, x: covariance(z[0], x[0]))),
]  # fmt: skip
CASES = ELEMENTS + DISTANCES + MOMENTS + PRODUCTS
