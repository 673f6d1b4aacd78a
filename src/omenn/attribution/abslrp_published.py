"""absLRP as the code of its authors computes it, for the networks that this code knows.

NOTE three differences from the formula. The parts of a residual addition are differentiated in the
graph of the whole network, so that a shortcut also gets what runs through its branch; a layer norm
of magnitudes has mean and deviation of |x|; modules that do nothing (identities, dropout) follow
the general rule, where what is negative passes nothing on, but for identities in a transformer.

Everything here is R itself, not R / x. A network is walked module by module: children in order,
residual blocks and transformers by the names of their parts, as timm has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omenn.errors import ModelError

TINY = 1e-9
Back = Callable[[Tensor], Tensor]

_BASIC = "conv1 bn1 drop_block act1 aa conv2 bn2 drop_path".split()
_BOTTLENECK = "conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3 drop_path".split()


def normal(relevance: Tensor) -> Tensor:
    """R with Σ|R| = 1 in each sample."""
    flat = relevance.flatten(1)
    return (flat / (flat.abs().sum(1, keepdim=True) + TINY)).view_as(relevance)


def ruled(
    y: Tensor, absolute: Tensor, xs: Sequence[Tensor], divide: bool = True
) -> Callable[[Tensor], list[Tensor]]:
    """R of the output → R of each input, x ⊙ ∂/∂x Σ s (h + h_a), in the graph of everything."""

    def back(relevance: Tensor) -> list[Tensor]:
        s = relevance / (y.detach().abs() + TINY) if divide else relevance
        grads = torch.autograd.grad(y + absolute, xs, s, retain_graph=True)
        return [normal(x.detach() * g) for x, g in zip(xs, grads, strict=True)]

    return back


class Walk:
    """One pass forward through a model, with the way back beside it."""

    def __init__(self, model: nn.Module, divided: bool | None) -> None:
        self.names = {id(m): name or type(m).__name__ for name, m in model.named_modules()}
        self.tokens = _has(model, "patch_embed blocks norm head")
        branches = any(_has(m, "conv1 bn1 act1 conv2 bn2") for m in model.modules())
        self.divided = (branches or self.tokens) if divided is None else divided

    def __call__(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Back]:
        """What a module makes of x, and R of that → R of x."""
        if not any(True for _ in module.children()):
            return self.leaf(module, x)
        with torch.no_grad():
            expected = module(x)
        try:
            y, back = self._composed(module, x)
            same = y.shape == expected.shape and torch.allclose(y, expected, 1e-3, 1e-5)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise self._foreign(module) from error
        if not same:
            raise self._foreign(module)
        return y, back

    def _composed(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Back]:
        if _has(module, "conv1 bn1 act1 conv2 bn2"):
            return self.residual(module, x)
        if _has(module, "norm1 attn norm2 mlp"):
            return self.block(module, x)
        if _has(module, "qkv proj num_heads"):
            return self.attention(module, x)
        if _has(module, "patch_embed blocks norm head"):
            return self.transformer(module, x)
        return self.chain(module.children(), x)

    def _foreign(self, module: nn.Module) -> ModelError:
        name = self.names.get(id(module), type(module).__name__)
        return ModelError(
            f"published=True is the code of absLRP's authors, which knows timm's VGG, ResNet and "
            f"VisionTransformer (with a class token) and takes the children of any other module in "
            f"order; '{name}' ({type(module).__name__}) computes something else.",
            argument="published",
            got="True",
            module=name,
            remedy="Omit published: the formula takes any network.",
        )

    # --- parts -----------------------------------------------------------------------------

    def leaf(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Back]:
        """A module without children; its weight and bias count by their magnitudes in h_a."""
        if self.tokens and isinstance(module, nn.Identity):
            return x, lambda relevance: relevance
        y = module(x.clone() if getattr(module, "inplace", False) else x)
        absolute = torch.func.functional_call(module, _magnitudes(module), (x.abs(),))
        divide = self.divided or not isinstance(module, nn.MaxPool2d)
        back = ruled(y, absolute, [x], divide)
        return y, lambda relevance: back(relevance)[0]

    def chain(self, modules: Any, x: Tensor) -> tuple[Tensor, Back]:
        backs = []
        for module in modules:
            x, back = self(module, x)
            backs.append(back)
        return x, _together(backs)

    def parts(self, module: nn.Module, names: Sequence[str], x: Tensor) -> tuple[Tensor, Back]:
        found = [getattr(module, name, None) for name in names]
        return self.chain([m for m in found if m is not None], x)

    def residual(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Back]:
        """A block of a ResNet: both branches, their sum, the activation behind it."""
        if getattr(module, "se", None) is not None:
            raise self._foreign(module)
        deep = hasattr(module, "conv3")
        branch, along = self.parts(module, _BOTTLENECK if deep else _BASIC, x)
        short, beside = x, None
        down = getattr(module, "downsample", None)
        if down is not None:
            short, beside = self(down, x)
        total, each = added(branch, short)
        y, last = self.leaf(getattr(module, "act3" if deep else "act2"), total)

        def back(relevance: Tensor) -> Tensor:
            own, other = each(last(relevance))
            return along(own) + (other if beside is None else beside(other))

        return y, back

    def norm(self, module: Any, x: Tensor) -> tuple[Tensor, Back]:
        """A layer norm, whose mean and deviation are constants: in h_a those of |x|."""
        if not isinstance(module, nn.LayerNorm) or module.weight is None or module.bias is None:
            raise self._foreign(module)
        weight, bias, eps = module.weight, module.bias, module.eps

        def of(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            mean = x.mean(-1, keepdim=True).detach()
            variance = x.var(-1, keepdim=True, unbiased=False).detach()
            return (x - mean) / (variance + eps).sqrt() * weight + bias

        y = of(x, weight, bias)
        back = ruled(y, of(x.abs(), weight.abs(), bias.abs()), [x])
        return y, lambda relevance: back(relevance)[0]

    def block(self, module: Any, x: Tensor) -> tuple[Tensor, Back]:
        """A block of a transformer: attention, then the MLP, each beside its shortcut."""
        backs = []
        for norm, rest in (("norm1", ["attn", "ls1", "drop_path1"]),
                           ("norm2", ["mlp", "ls2", "drop_path2"])):  # fmt: skip
            y, first = self.norm(getattr(module, norm), x)
            y, along = self.parts(module, rest, y)
            x, each = added(y, x)
            backs.append(_beside(each, _together([first, along])))
        return x, _together(backs)

    def attention(self, module: Any, x: Tensor) -> tuple[Tensor, Back]:
        batch, tokens, width = x.shape
        heads = module.num_heads
        qkv, to_x = self.leaf(module.qkv, x)
        q, k, v = qkv.reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, from_q = self(module.q_norm, q) if hasattr(module, "q_norm") else (q, _together([]))
        k, from_k = self(module.k_norm, k) if hasattr(module, "k_norm") else (k, _together([]))
        q = q * module.scale
        logits = q @ k.mT
        of_logits = ruled(logits, q.abs() @ k.abs().mT, [q, k])
        weights = _softmax(logits)
        of_weights = ruled(weights, _softmax(logits.abs()), [logits])
        kept, dropped = self.leaf(module.attn_drop, weights)
        out = kept @ v
        of_out = ruled(out, kept.abs() @ v.abs(), [kept, v])
        y, last = self.parts(module, ["proj", "proj_drop"],
                             out.transpose(1, 2).reshape(batch, tokens, width))  # fmt: skip

        def back(relevance: Tensor) -> Tensor:
            r = last(relevance).reshape(batch, tokens, heads, -1).transpose(2, 1)
            to_weights, to_v = of_out(r)
            to_q, to_k = of_logits(of_weights(dropped(to_weights))[0])
            each = torch.stack([from_q(to_q), from_k(to_k), to_v])
            return to_x(each.permute(1, 3, 0, 2, 4).reshape(batch, tokens, -1))

        return y, back

    def transformer(self, module: Any, x: Tensor) -> tuple[Tensor, Back]:
        """A vision transformer that reads its class token, whose own relevance goes nowhere."""
        if not isinstance(module.cls_token, Tensor) or not isinstance(module.pos_embed, Tensor):
            raise self._foreign(module)
        cells, to_image = self.leaf(module.patch_embed.proj, x)
        tokens = cells.flatten(2).transpose(1, 2)
        tokens = torch.cat([module.cls_token.expand(len(x), -1, -1), tokens], 1)
        y = tokens + module.pos_embed
        placed = ruled(y, tokens.abs() + module.pos_embed.abs(), [tokens])
        y, first = self.parts(module, ["patch_drop", "norm_pre", "blocks"], y)
        y, normed = self.norm(module.norm, y)
        pooled = y[:, 0]
        chosen = ruled(pooled, y.abs()[:, 0], [y])
        y, last = self.parts(module, ["fc_norm", "head_drop", "head"], pooled)

        def back(relevance: Tensor) -> Tensor:
            r = first(normed(chosen(last(relevance))[0]))
            return to_image(placed(r)[0][:, 1:].transpose(1, 2).reshape(cells.shape))

        return y, back


def added(a: Tensor, b: Tensor) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """a + b, where a may itself be made of b: b then has that part as well."""
    y = a + b
    return y, ruled(y, a.abs() + b.abs(), [a, b])


def _beside(each: Callable[[Tensor], list[Tensor]], along: Back) -> Back:
    def back(relevance: Tensor) -> Tensor:
        branch, short = each(relevance)
        return along(branch) + short

    return back


def _together(backs: Sequence[Back]) -> Back:
    def back(relevance: Tensor) -> Tensor:
        for one in reversed(backs):
            relevance = one(relevance)
        return relevance

    return back


def _softmax(x: Tensor) -> Tensor:
    """exp(x − max) over its sum, both held constant."""
    raised = (x - x.amax(-1, keepdim=True).detach()).exp()
    return raised / raised.sum(-1, keepdim=True).detach()


def _magnitudes(module: nn.Module) -> dict[str, Tensor]:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor):
        return {}
    return {"weight": weight.abs()} | ({} if bias is None else {"bias": bias.abs()})


def _has(module: nn.Module, names: str) -> bool:
    return all(hasattr(module, name) for name in names.split())


def relevance(model: Any, x: Tensor, target: Tensor, divided: bool | None) -> tuple[Tensor, Tensor]:
    """(logits, R₊ − R₋ over its largest magnitude in each sample), R₋ evenly at the other classes.

    ``divided``: whether max pooling divides by |h|; None as the code has it for this network.

    Raises:
        ModelError: a network that the published code does not know.
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        logits, back = Walk(model, divided)(model, leaf)
        if logits.ndim != 2:
            raise ModelError(
                "published=True is for models that return logits (B, classes), but this one "
                f"returns {tuple(logits.shape)}.",
                argument="published",
                got=str(tuple(logits.shape)),
                expected="(B, classes)",
                remedy="Omit published.",
            )
        chosen = nn.functional.one_hot(target, logits.shape[1]).to(logits.dtype)
        found = back(normal(chosen)) - back(normal(1 - chosen))
    top = found.flatten(1).abs().amax(1).view(-1, *[1] * (found.ndim - 1))
    return logits.detach(), found / (top + TINY)
