"""The rules of LRP in float64, unit by unit as the papers write them; nothing here knows omenn.

A layer is a dense matrix W (outputs, inputs) with b, found by probing; z_ij = w_ji x_i. Everything
is flattened, and R is the relevance itself, not R / x as the engine has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def dense(f: Function, like: Tensor) -> tuple[Tensor, Tensor]:
    """(W, b) of an affine map of tensors shaped as ``like``."""
    b = f(torch.zeros_like(like)).reshape(-1)
    basis = torch.eye(like.numel(), dtype=like.dtype)
    columns = [f(e.reshape(like.shape)).reshape(-1) - b for e in basis]
    return torch.stack(columns, 1).detach(), b.detach()


def sign(z: Tensor) -> float:
    return -1.0 if z < 0 else 1.0


def epsilon_rule(epsilon: float) -> Rule:
    def rule(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for j in range(len(r)):
            z = (w[j] * x).sum() + b[j]
            if r[j] == 0:  # a dead unit, for which z may be zero
                continue
            out += w[j] * x / (z + epsilon * sign(z)) * r[j]
        return out

    return rule


def alpha_beta_rule(alpha: float, beta: float, epsilon: float) -> Rule:
    def rule(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for j in range(len(r)):
            z = w[j] * x
            up = z.clamp(min=0).sum() + b[j].clamp(min=0) + epsilon
            down = z.clamp(max=0).sum() + b[j].clamp(max=0)
            down = down + epsilon * sign(down)
            out += (alpha * z.clamp(min=0) / up - beta * z.clamp(max=0) / down) * r[j]
        return out

    return rule


def gamma_rule(gamma: float, epsilon: float) -> Rule:
    def rule(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for j in range(len(r)):
            z = w[j] * x
            total = z.sum() + b[j]
            if total == 0:
                continue
            alike = (lambda t: t.clamp(min=0)) if total > 0 else (lambda t: t.clamp(max=0))
            below = total + gamma * (alike(z).sum() + alike(b[j]))
            out += (z + gamma * alike(z)) / (below + epsilon * sign(below)) * r[j]
        return out

    return rule


def proportional(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """The z-rule, of which sums, averages and normalisations with ⟦1/σ⟧ make use."""
    return epsilon_rule(0.0)(x, w, b, r)


def winners(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Max pooling, all values of which differ: R goes to the element that is the output."""
    out = torch.zeros_like(x).reshape(-1)
    for value, part in zip(y.reshape(-1), r.reshape(-1), strict=True):
        if part != 0:
            out[int((x.reshape(-1) == value).nonzero())] += part
    return out.reshape(x.shape)


def centring(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The matrix of a layer norm over the last dimension of tokens (N, D), 1/σ held constant."""
    n, d = x.shape
    out = torch.zeros(n * d, n * d, dtype=x.dtype)
    for t in range(n):
        sigma = (x[t] - x[t].mean()).square().mean().add(eps).sqrt()
        block = (torch.eye(d, dtype=x.dtype) - 1 / d) / sigma * weight[:, None]
        out[t * d : (t + 1) * d, t * d : (t + 1) * d] = block
    return out


# --- AttnLRP: products in halves, softmax by its Taylor expansion ---------------------------------


def halves(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """y = a b for matrices: R_a[i, k] = Σ_j a_ik b_kj R_ij / (2 y_ij), and so for b."""
    y = a @ b
    to_a, to_b = torch.zeros_like(a), torch.zeros_like(b)
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                part = a[i, k] * b[k, j] * r[i, j] / (2 * y[i, j])
                to_a[i, k] += part
                to_b[k, j] += part
    return to_a, to_b


def taylor_softmax(x: Tensor, r: Tensor) -> Tensor:
    """R_i = x_i (R_i − s_i Σ_j R_j) in each row; hidden logits (−∞) have none."""
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        s = torch.softmax(x[row], 0)
        for i in range(x.shape[1]):
            if not torch.isinf(x[row, i]):
                out[row, i] = x[row, i] * (r[row, i] - s[i] * r[row].sum())
    return out


# --- absLRP ---------------------------------------------------------------------------------------

TINY = 1e-9


def normal(r: Tensor) -> Tensor:
    return r / (r.abs().sum() + TINY)


def absolute(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """R_i = 2 Σ_j max(x_i w_ij, 0) R_j / |h_j|, then Σ|R| = 1."""
    out = torch.zeros_like(x)
    for j in range(len(r)):
        h = (w[j] * x).sum() + b[j]
        out += 2 * (w[j] * x).clamp(min=0) * r[j] / (h.abs() + TINY)
    return normal(out)


def absolute_of(function: Function, x: Tensor, r: Tensor) -> Tensor:
    """R = x ⊙ ∂/∂x Σ s (h + h_a), h_a = f(|x|), for a function of one tensor, then Σ|R| = 1."""
    leaf = x.clone().requires_grad_()
    h = function(leaf)
    s = r / (h.detach().abs() + TINY)
    (grad,) = torch.autograd.grad((s * (h + function(leaf.abs()))).sum(), leaf)
    return normal(x * grad)


def absolute_each(function: Callable[..., Tensor], xs: Sequence[Tensor], r: Tensor) -> list[Tensor]:
    """The same for an operator of several tensors: each as an input alone."""
    out = []
    for k, x in enumerate(xs):
        rest = [[t.abs() for t in xs], list(xs)]
        leaf = x.clone().requires_grad_()
        rest[0][k], rest[1][k] = leaf.abs(), leaf
        h, h_a = function(*rest[1]), function(*rest[0])
        s = r / (h.detach().abs() + TINY)
        out.append(normal(x * torch.autograd.grad((s * (h + h_a)).sum(), leaf)[0]))
    return out


def absolute_softmax(x: Tensor, r: Tensor) -> Tensor:
    """exp(x − max) / Σ with the sum held constant, rows of (N, M)."""
    return absolute_of(
        lambda t: torch.exp(t - t.detach().amax(-1, keepdim=True)).div(
            torch.exp(t - t.amax(-1, keepdim=True)).sum(-1, keepdim=True).detach()
        ),
        x,
        r,
    )
