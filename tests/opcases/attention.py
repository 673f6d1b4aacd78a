"""Softmax attention, fused and in modules: A ⊗ I, nothing through the query and the key."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opcases.case import Case, draw, table
from opcases.linear import seeded
from oracle import Affine, Inputs, Oracle, attended, held, normalised, softmax_rows

Q, K, V = draw(2, 2, 3, 4), draw(2, 2, 5, 4, seed=1), draw(2, 2, 5, 3, seed=2)
SELF = draw(2, 4, 6, seed=3)
FLOATS = draw(3, 5, seed=4)
ALLOWED = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
DARK = ALLOWED & torch.tensor([True, False, True])[:, None]
PADDED = torch.tensor([[False, False, False, True], [False, False, True, True]])
FORBIDDEN = torch.ones(4, 4, dtype=torch.bool).triu(1)
sdpa = F.scaled_dot_product_attention


def qkv(**options) -> list[Case]:
    """Fused attention of three inputs, with the same options for the oracle."""
    spelled = {"is_causal": options.get("causal", False), "scale": options.get("scale"),
               "attn_mask": options.get("mask")}  # fmt: skip
    name = " ".join(k for k in options if k != "name")
    name = options.pop("name", name)
    return table("scaled_dot_product_attention", {name: lambda q, k, v: sdpa(q, k, v, **spelled)},
                 Q, K, V, oracle=attended(**options))  # fmt: skip


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = (q @ k.mT) / q.shape[-1] ** 0.5
    return logits.masked_fill(~ALLOWED, -torch.inf).softmax(-1) @ v


def with_baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = FLOATS.expand(4, 3, 5)
    logits = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=0.5)
    return logits.softmax(-1).bmm(v.flatten(0, 1)).unflatten(0, (2, 2))


FUSED: list[Case] = [
    *qkv(name="plain"),
    *qkv(causal=True),
    *qkv(scale=0.3),
    *qkv(mask=FLOATS, name="additive mask"),
    *qkv(mask=ALLOWED, name="mask"),
    *qkv(mask=DARK, name="a row masked everywhere"),
    *qkv(mask=FLOATS.expand(2, 2, 3, 5), scale=0.7, name="full mask and scale"),
    *table("scaled_dot_product_attention", {
        "positional": lambda q, k, v: sdpa(q, k, v, ALLOWED, 0.0, False),
        "keyword": lambda q, k, v: sdpa(query=q, key=k, value=v, attn_mask=ALLOWED, dropout_p=0.0),
    }, Q, K, V, oracle=attended(ALLOWED)),
    *table("scaled_dot_product_attention",
           {"grouped": lambda q, k, v: sdpa(q, k, v, enable_gqa=True)},
           draw(2, 4, 3, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 3, seed=2), oracle=attended(gqa=True)),
    *table("scaled_dot_product_attention", {"no heads": sdpa}, draw(3, 4), draw(5, 4), draw(5, 2),
           oracle=attended(), samples=False),
    *table("scaled_dot_product_attention", {"one tensor": lambda x: sdpa(x, x, x)}, SELF,
           oracle=held(lambda z, x: softmax_rows(x[0] @ x[0].mT / 6 ** 0.5) @ z[0])),
    *table("scaled_dot_product_attention", {
        "constant query": lambda x: sdpa(draw(2, 3, 6), x, x)}, SELF,
        oracle=held(lambda z, x: softmax_rows(draw(2, 3, 6) @ x[0].mT / 6 ** 0.5) @ z[0])),
    *table("scaled_dot_product_attention", {
        "constant value": lambda x: x[:, :3] + sdpa(x[:, :3], x, draw(2, 4, 6))}, SELF,
        oracle=held(lambda z, x: z[0][:, :3] + softmax_rows(
            x[0][:, :3] @ x[0].mT / 6 ** 0.5) @ draw(2, 4, 6))),
    *table("softmax", {"attention written out": written_out}, Q, K, V, oracle=attended(ALLOWED)),
    *table("softmax", {"attention baddbmm": with_baddbmm}, Q, K, V, oracle=attended(FLOATS)),
]  # fmt: skip


def mixing(m: nn.MultiheadAttention, added: Tensor | None = None):
    """g(z, x): multi-head attention, batch first, sample by sample and head by head.

    The weights come from x = (q, k, v) or (x,), the values from the last of z.
    """

    def projections() -> list[tuple[Tensor, Tensor | None]]:
        separate = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
        weights = separate if m.in_proj_weight is None else m.in_proj_weight.chunk(3)
        biases = (None,) * 3 if m.in_proj_bias is None else m.in_proj_bias.chunk(3)
        return list(zip(weights, biases, strict=True))

    def project(t: Tensor, which: int) -> Tensor:
        weight, bias = projections()[which]
        out = t @ weight.T if bias is None else t @ weight.T + bias
        extra = {1: m.bias_k, 2: m.bias_v}.get(which)
        out = out if extra is None else torch.cat([out, extra[0]])
        return torch.cat([out, torch.zeros_like(out[:1])]) if m.add_zero_attn and which else out

    def g(z: Inputs, x: Inputs) -> Tensor:
        (q, k, _), v = (x * 3 if len(x) == 1 else x), z[-1]
        outs = []
        for b in range(q.shape[0]):
            wide, long = project(q[b], 0), project(k[b], 1)
            value, parts = project(v[b], 2), []
            size = wide.shape[1] // m.num_heads
            for h in range(m.num_heads):
                own = slice(h * size, (h + 1) * size)
                logits = wide[:, own] @ long[:, own].T / size**0.5
                if added is not None:
                    logits[:, : added.shape[-1]] += added[b % added.shape[0]]
                parts.append(softmax_rows(logits) @ value[:, own])
            outs.append(m.out_proj(torch.cat(parts, 1)))
        return torch.stack(outs).detach()

    return g


def heads(m: nn.MultiheadAttention, added: Tensor | None = None) -> Oracle:
    return held(mixing(m, added))


def mha(**options) -> nn.MultiheadAttention:
    return seeded(nn.MultiheadAttention(6, 2, batch_first=True, **options))


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(mask, -torch.inf)


def self_attention(
    name: str, m: nn.MultiheadAttention, added: Tensor | None = None, **how
) -> list[Case]:
    """Both ways through the module: with the weights and without."""
    return table("multi_head_attention_forward", {
        f"{name}, weights": lambda x: m(x, x, x, **how)[0],
        f"{name}, no weights": lambda x: m(x, x, x, need_weights=False, **how)[0],
    }, SELF, oracle=heads(m, added))  # fmt: skip


_plain, _long = mha(), seeded(nn.MultiheadAttention(6, 3))
_mixed = mha(kdim=5, vdim=3)

MODULES: list[Case] = [
    *self_attention("plain", _plain),
    *self_attention("no bias", mha(bias=False)),
    *self_attention("bias_k", mha(add_bias_kv=True)),
    *self_attention("zero attention", mha(add_zero_attn=True)),
    *self_attention("everything", mha(add_bias_kv=True, add_zero_attn=True),
                    additive(PADDED)[:, None], key_padding_mask=PADDED),
    *self_attention("mask", _plain, additive(FORBIDDEN)[None], attn_mask=FORBIDDEN),
    *self_attention("additive mask", _plain, draw(4, 4)[None], attn_mask=draw(4, 4)),
    *self_attention("padding", _plain, additive(PADDED)[:, None], key_padding_mask=PADDED),
    *self_attention("both masks", _plain, additive(PADDED)[:, None] + additive(FORBIDDEN),
                    key_padding_mask=PADDED, attn_mask=FORBIDDEN),
    *self_attention("mask of each head", _plain, draw(2, 4, 4),
                    attn_mask=draw(2, 4, 4).repeat_interleave(2, 0)),
    *self_attention("causal", _plain, additive(FORBIDDEN)[None], attn_mask=FORBIDDEN,
                    is_causal=True),
    *table("multi_head_attention_forward", {
        "time first": lambda x: _long(x.transpose(0, 1), x.transpose(0, 1),
                                      x.transpose(0, 1))[0].transpose(0, 1),
        "weights of each head": lambda x: _long(*[x.transpose(0, 1)] * 3,
                                                average_attn_weights=False)[0]
        .transpose(0, 1),
    }, SELF, oracle=heads(_long)),
    *table("multi_head_attention_forward",
           {"unbatched": lambda x: _plain(x[0], x[0], x[0])[0][None]},
           SELF[:1], oracle=heads(_plain)),
    *table("multi_head_attention_forward", {
        "kdim and vdim": lambda q, k, v: _mixed(q, k, v)[0],
        "kdim and vdim, no weights": lambda q, k, v: _mixed(q, k, v, need_weights=False)[0],
    }, SELF, draw(2, 3, 5), draw(2, 3, 3), oracle=heads(_mixed)),
    *table("multi_head_attention_forward", {"returned weights": lambda x: _plain(x, x, x)[1] @ x},
           SELF,
           oracle=held(lambda z, x: _plain(x[0], x[0], x[0])[1].detach() @ z[0])),
]  # fmt: skip


def composed(*stages: Oracle) -> Oracle:
    """The product of the affine maps of stages that follow one another on one tensor."""

    def oracle(call, inputs: Inputs) -> Affine:
        (x,) = inputs
        n, here = x.numel(), x
        total = Affine(torch.eye(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64))
        for stage in stages:
            weight, bias = stage(None, (here,))
            total = Affine(weight @ total.weight, weight @ total.bias + bias)
            here = (weight @ here.reshape(-1) + bias).reshape(x.shape)
        return total

    return oracle


def residual(stage: Oracle) -> Oracle:
    def oracle(call, inputs: Inputs) -> Affine:
        weight, bias = stage(None, inputs)
        return Affine(torch.eye(len(bias), dtype=torch.float64) + weight, bias)

    return oracle


def feed_forward(layer: nn.TransformerEncoderLayer, phi) -> Oracle:
    """W₂ ⟦φ(h)/h⟧ W₁ x + …, with φ(0) = 0."""

    def g(z: Inputs, x: Inputs) -> Tensor:
        inside = layer.linear1(x[0])
        return layer.linear2(layer.linear1(z[0]) * (phi(inside) / inside)).detach()

    return held(g)


def normal(m: nn.LayerNorm) -> Oracle:
    from opcases.normalisation import last

    return normalised(last(1), eps=m.eps, gamma=m.weight.detach(), beta=m.bias.detach())


def encoder_layer(layer: nn.TransformerEncoderLayer, phi, added: Tensor | None = None) -> Oracle:
    attention, feed = heads(layer.self_attn, added), feed_forward(layer, phi)
    one, two = normal(layer.norm1), normal(layer.norm2)
    if layer.norm_first:
        return composed(residual(composed(one, attention)), residual(composed(two, feed)))
    return composed(residual(attention), one, residual(feed), two)


def layer(**options) -> nn.TransformerEncoderLayer:
    return seeded(nn.TransformerEncoderLayer(6, 2, 5, batch_first=True, **options))


_post, _pre = layer(), layer(activation="gelu", norm_first=True)
_stack = seeded(nn.TransformerEncoder(layer(), 2, enable_nested_tensor=False))

ENCODERS: list[Case] = [
    *table("multi_head_attention_forward", {"encoder layer": _post}, SELF,
           oracle=encoder_layer(_post, F.relu)),
    *table("multi_head_attention_forward", {"encoder layer, norm first": _pre}, SELF,
           oracle=encoder_layer(_pre, F.gelu)),
    *table("multi_head_attention_forward", {
        "encoder with padding": lambda x: _stack(x, src_key_padding_mask=PADDED)}, SELF,
        oracle=composed(*(encoder_layer(m, F.relu,
                                        additive(PADDED)[:, None]) for m in _stack.layers))),
    *table("multi_head_attention_forward", {
        "causal encoder": lambda x: _stack(x, FORBIDDEN, is_causal=True)}, SELF,
        oracle=composed(*(encoder_layer(m, F.relu,
                                        additive(FORBIDDEN)[None]) for m in _stack.layers))),
]  # fmt: skip


def decoder_layer(m: nn.TransformerDecoderLayer) -> Oracle:
    """Target (B, T, D) and memory (B, S, D); only values carry."""

    def frozen_norm(norm: nn.LayerNorm, z: Tensor, x: Tensor) -> Tensor:
        sigma = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        return norm.weight * (z - z.mean(-1, keepdim=True)) / sigma + norm.bias

    def mixed(
        a: nn.MultiheadAttention, q: Tensor, k: Tensor, z: Tensor, mask: Tensor | None
    ) -> Tensor:
        return mixing(a, mask)((z,), (q, k, k))

    def g(z: Inputs, x: Inputs) -> Tensor:
        late = additive(FORBIDDEN)[None]
        here = x[0] + mixed(m.self_attn, x[0], x[0], x[0], late)
        zs = frozen_norm(m.norm1, z[0] + mixed(m.self_attn, x[0], x[0], z[0], late), here)
        here = m.norm1(here)
        next_ = here + mixed(m.multihead_attn, here, x[1], x[1], None)
        zs = frozen_norm(m.norm2, zs + mixed(m.multihead_attn, here, x[1], z[1], None), next_)
        here = m.norm2(next_)
        gate = (m.linear1(here) > 0).double()
        zs = zs + m.linear2(m.linear1(zs) * gate)
        return frozen_norm(m.norm3, zs, here + m.linear2(m.linear1(here).relu())).detach()

    return held(g)


_decoder = seeded(nn.TransformerDecoderLayer(6, 2, 5, batch_first=True))

_decoders = nn.TransformerDecoder(_decoder, 1).eval()
_decoders.layers[0] = _decoder

DECODERS: list[Case] = table("multi_head_attention_forward", {
    "decoder layer": lambda x, memory: _decoder(x, memory, tgt_mask=FORBIDDEN),
    "decoder": lambda x, memory: _decoders(x, memory, FORBIDDEN),
}, SELF, draw(2, 3, 6, seed=8), oracle=decoder_layer(_decoder), tolerance=1e-10)  # fmt: skip

CASES = FUSED + MODULES + ENCODERS + DECODERS
