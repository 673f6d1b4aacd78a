"""absLRP as its authors' code has it, against the same written out: Jacobians of everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omenn
from nets import Residual, draw, seeded
from omenn.errors import InputError, ModelError

TINY = 1e-9


def norm(r: Tensor) -> Tensor:
    return r / (r.abs().sum() + TINY)


def rule(
    y: Callable[[Tensor], Tensor], absolute: Callable[[Tensor], Tensor], x: Tensor, r: Tensor,
    divide: bool = True,
) -> Tensor:  # fmt: skip
    """x ⊙ Jᵀ s for one sample, J the whole Jacobian of h + h_a, entry by entry."""
    h = y(x).detach()
    s = r / (h.abs() + TINY) if divide else r
    jacobian: Any = torch.autograd.functional.jacobian(lambda t: y(t) + absolute(t), x)
    return norm(x * (jacobian.reshape(h.numel(), -1).T @ s.reshape(-1)).reshape(x.shape))


def module(m: nn.Module, x: Tensor, r: Tensor, divide: bool = True) -> Tensor:
    """The general rule of a module without children."""
    own = {k: v.abs() for k, v in m.named_parameters()}
    call = torch.func.functional_call
    return rule(m, lambda t: call(m, own, (t.abs(),)), x, r, divide)


def contrast(back: Callable[[Tensor], Tensor], classes: int, target: int) -> Tensor:
    one = F.one_hot(torch.tensor([target]), classes).double()
    found = back(norm(one)) - back(norm(1 - one))
    return found / (found.abs().max() + TINY)


def published(net: nn.Module, x: Tensor, target: int = 1, **options: Any) -> Tensor:
    return omenn.explain(net, x, target, method="abslrp", published=True, **options).contribution


def close(found: Tensor, expected: Tensor) -> None:
    assert float(expected.abs().max()) > 0.5
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-9)


# --- a VGG ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["auto", "divided"])
def test_a_chain_of_modules(pooling: str) -> None:
    """Max pooling is not divided; dropout follows the general rule: positives alone pass."""
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
              nn.Linear(16, 5), nn.Dropout(), nn.Linear(5, 3)]  # fmt: skip
    net, x = seeded(nn.Sequential(*layers)), draw(1, 2, 6, 6)

    def back(r: Tensor) -> Tensor:
        states = [x]
        for layer in layers:
            states.append(layer(states[-1]).detach())
        for layer, at in zip(reversed(layers), reversed(states[:-1]), strict=True):
            divide = pooling == "divided" or not isinstance(layer, nn.MaxPool2d)
            r = module(layer, at, r, divide)
        return r

    close(published(net, x, pooling=pooling), contrast(back, 3, 1))
    formula = omenn.explain(net, x, 1, method="abslrp", pooling=pooling).contribution
    assert not torch.allclose(formula, published(net, x, pooling=pooling), atol=1e-2)


# --- a ResNet ---------------------------------------------------------------------------------


class Basic(nn.Module):
    def __init__(self, width: int, out: int, down: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out)
        self.act1, self.act2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out)
        self.downsample = nn.Sequential(nn.Conv2d(width, out, 1)) if down else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.act2(y)


def through_block(block: Basic, x: Tensor, r: Tensor) -> Tensor:
    """The shortcut's own share, and what runs through the branch as the code differentiates it."""
    relu = nn.ReLU()
    conv1 = block.conv1(x).detach()
    bn1 = block.bn1(conv1).detach()
    act1 = relu(bn1)
    conv2 = block.conv2(act1).detach()
    branch = block.bn2(conv2).detach()
    down = block.downsample
    short = x if down is None else down(x).detach()
    r = module(relu, branch + short, r)

    def of_short(t: Tensor) -> Tensor:
        if down is not None:
            return branch
        return block.bn2(block.conv2(relu(block.bn1(block.conv1(t)))))

    to_branch = rule(lambda t: t + short, lambda t: t.abs() + short.abs(), branch, r)
    to_short = rule(
        lambda t: of_short(t) + t, lambda t: of_short(t).abs() + t.abs(), short, r
    )  # fmt: skip
    r = module(block.bn2, conv2, to_branch)
    r = module(block.conv2, act1, r)
    r = module(relu, bn1, r)
    r = module(block.conv1, x, module(block.bn1, conv1, r))
    return r + (to_short if down is None else module(down[0], x, to_short))


def test_a_shortcut_also_has_what_runs_through_its_branch() -> None:
    stem, pool, head = nn.Conv2d(2, 3, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)
    blocks = [Basic(3, 3, False), Basic(3, 4, True)]
    net = seeded(nn.Sequential(stem, *blocks, pool, nn.Flatten(), head))
    x = draw(1, 2, 5, 5)

    def back(r: Tensor) -> Tensor:
        first = stem(x).detach()
        second = blocks[0](first).detach()
        third = blocks[1](second).detach()
        mean = pool(third).detach()
        r = module(head, mean.flatten(1), r)
        r = module(pool, third, module(nn.Flatten(), mean, r))
        r = through_block(blocks[0], first, through_block(blocks[1], second, r))
        return module(stem, x, r)

    close(published(net, x), contrast(back, 3, 1))
    formula = omenn.explain(net, x, 1, method="abslrp").contribution
    assert not torch.allclose(formula, published(net, x), atol=1e-2)


# --- a vision transformer ---------------------------------------------------------------------


def vit() -> Any:
    timm = pytest.importorskip("timm")
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=4, in_chans=2, num_classes=3, embed_dim=8, depth=1, num_heads=2
    )
    return seeded(net)


def stable(m: Any, t: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A layer norm whose mean and deviation have no derivative."""
    mean = t.mean(-1, keepdim=True).detach()
    deviation = (t.var(-1, unbiased=False, keepdim=True) + m.eps).sqrt().detach()
    return (t - mean) / deviation * weight + bias


def layer_norm(m: Any, x: Tensor, r: Tensor) -> Tensor:
    """σ in h_a is that of |x|."""
    own = [m.weight.detach(), m.bias.detach()]
    size = [v.abs() for v in own]
    return rule(lambda t: stable(m, t, *own), lambda t: stable(m, t.abs(), *size), x, r)


def softmax(t: Tensor) -> Tensor:
    raised = (t - t.amax(-1, keepdim=True).detach()).exp()
    return raised / raised.sum(-1, keepdim=True).detach()


def through_attention(m: Any, x: Tensor, r: Tensor) -> Tensor:
    n = x.shape[1]
    qkv = m.qkv(x).detach()
    q, k, v = qkv.reshape(1, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
    q = q * m.scale
    logits = q @ k.mT
    weights = softmax(logits)
    out = weights @ v
    flat = out.transpose(1, 2).reshape(1, n, 8)
    r = module(m.proj_drop, m.proj(flat).detach(), r)
    r = module(m.proj, flat, r).reshape(1, n, 2, 4).transpose(1, 2)
    to_v = rule(lambda t: weights @ t, lambda t: weights @ t.abs(), v, r)
    to_weights = rule(lambda t: t @ v, lambda t: t.abs() @ v.abs(), weights, r)
    r = module(m.attn_drop, weights, to_weights)
    r = rule(softmax, lambda t: softmax(t.abs()), logits, r)
    to_q = rule(lambda t: t @ k.mT, lambda t: t.abs() @ k.abs().mT, q, r)
    to_k = rule(lambda t: q @ t.mT, lambda t: q.abs() @ t.abs().mT, k, r)
    each = torch.stack([to_q, to_k, to_v]).permute(1, 3, 0, 2, 4).reshape(1, n, 24)
    return module(m.qkv, x, each)


def test_a_vision_transformer() -> None:
    net, x = vit(), draw(1, 2, 8, 8)
    block, embed = net.blocks[0], net.patch_embed
    cells = embed.proj(x).detach()
    tokens = torch.cat([net.cls_token, cells.flatten(2).mT], 1).detach()
    place = net.pos_embed.detach()
    start = tokens + place

    def attended(t: Tensor) -> Tensor:
        return block.attn(stable(block.norm1, t, block.norm1.weight, block.norm1.bias))

    def mixed(t: Tensor) -> Tensor:
        return block.mlp(stable(block.norm2, t, block.norm2.weight, block.norm2.bias))

    # The graph of the code has the softmax without its sum and norms without their statistics, so
    # that the attention inside a shortcut's derivative is written out once more.
    def inner(t: Tensor) -> Tensor:
        h = stable(block.norm1, t, block.norm1.weight, block.norm1.bias)
        n = h.shape[1]
        q, k, v = block.attn.qkv(h).reshape(1, n, 3, 2, 4).permute(2, 0, 3, 1, 4)
        out = softmax(q * block.attn.scale @ k.mT) @ v
        return block.attn.proj(out.transpose(1, 2).reshape(1, n, 8))

    branch1 = attended(start).detach()
    middle = start + branch1
    branch2 = mixed(middle).detach()
    last = middle + branch2
    normed = stable(net.norm, last, net.norm.weight, net.norm.bias).detach()

    def added(branch: Tensor, short: Tensor, r: Tensor, of: Any) -> tuple[Tensor, Tensor]:
        to_branch = rule(lambda t: t + short, lambda t: t.abs() + short.abs(), branch, r)
        return to_branch, rule(lambda t: of(t) + t, lambda t: of(t).abs() + t.abs(), short, r)

    def back(r: Tensor) -> Tensor:
        r = module(net.head, normed[:, 0], r)
        r = module(net.head_drop, normed[:, 0], r)
        r = rule(lambda t: t[:, 0], lambda t: t.abs()[:, 0], normed, r)
        r = layer_norm(net.norm, last, r)
        own, short = added(branch2, middle, r, mixed)
        h = stable(block.norm2, middle, block.norm2.weight, block.norm2.bias).detach()
        states = [h]
        mlp = block.mlp
        names = ["fc1", "act", "drop1", "fc2", "drop2"]
        for name in names:
            states.append(getattr(mlp, name)(states[-1]).detach())
        for name, at in zip(reversed(names), reversed(states[:-1]), strict=True):
            own = module(getattr(mlp, name), at, own)
        r = layer_norm(block.norm2, middle, own) + short
        own, short = added(branch1, start, r, inner)
        h = stable(block.norm1, start, block.norm1.weight, block.norm1.bias).detach()
        r = layer_norm(block.norm1, start, through_attention(block.attn, h, own)) + short
        r = rule(lambda t: t + place, lambda t: t.abs() + place.abs(), tokens, r)[:, 1:]
        return module(embed.proj, x, r.mT.reshape(cells.shape))

    close(published(net, x), contrast(back, 3, 1))


@pytest.mark.parametrize("name", ["resnet10t", "resnet26"])
def test_networks_of_timm_are_within_the_domain(name: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=4).eval()
    x = torch.randn(2, 3, 64, 64)
    found = published(net, x, 2)
    alone = published(net, x[1:], 2)
    assert found.shape == x.shape
    assert float(found.abs().amax()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(found[1:], alone, rtol=0, atol=1e-3)


# --- what is refused --------------------------------------------------------------------------


def test_a_network_of_another_kind_is_refused_by_name() -> None:
    net = seeded(Residual())
    with pytest.raises(ModelError, match="Residual"):
        published(net, draw(1, 2, 4, 4))
    timm = pytest.importorskip("timm")
    squeezed = timm.create_model("seresnet18", num_classes=3).eval()
    with pytest.raises(ModelError, match=r"layer1\.0"):
        published(squeezed, torch.randn(1, 3, 32, 32))
    no_class_token = timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3,
        class_token=False, global_pool="avg",
    ).eval()  # fmt: skip
    with pytest.raises(ModelError, match="VisionTransformer"):
        published(no_class_token, torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize("options", [{"contrastive": False}, {"at": "0"}, {"output": "logits"}])
def test_options_that_the_code_does_not_have(options: dict[str, Any]) -> None:
    net, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(1, 3)
    with pytest.raises(InputError):
        published(net, x, **options)
    with pytest.raises(InputError):
        omenn.explain(net, x, lambda y: y[:, 0], method="abslrp", published=True)
    with pytest.raises(InputError):
        omenn.explain(net, x, omenn.Contrast(0, 1), method="abslrp", published=True)
