"""Attention weights as a model made them, caught by the tracer, and the way back to pixels.

NOTE one form. Fused attention and ``nn.MultiheadAttention`` are run in their parts, so that each
attention arrives as a softmax over the last dimension whose result, whatever it went through in
between (dropout, masks, a change of shape), stands on the left of a matrix product with values.
All else is the ordinary network, with its true derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from omenn.attribution.attend import in_parts
from omenn.attribution.contributions import explanation_of, over_channels, spread_over_locations
from omenn.attribution.ordinary_gradient import OrdinaryTracer, table
from omenn.attribution.question import Question
from omenn.attribution.tokens import Product, einsum_product, matmul_product, same_places
from omenn.check import choose, wrong
from omenn.engine.operators.table import OPERATORS, Operator, of_kind
from omenn.engine.target import Target, check_finite, pick_output, select
from omenn.engine.trace.autograd_nodes import own_precision
from omenn.engine.trace.call import Call
from omenn.engine.trace.departures import check_departures
from omenn.engine.trace.guards import alone
from omenn.engine.trace.opaque import raise_opaque
from omenn.errors import ModelError, TargetError, UnsupportedOperator, reason
from omenn.explanation import Explanation

RESAMPLINGS = ("nearest", "bilinear")

# What attention weights may go through on their way to the values.
_MOVES = ("keeps", "reshapes", "repeats")
_SCALING = ("masked_fill", "where", "clamp", "mul", "div")


@dataclass(eq=False)
class Seen:
    """What the rules note in one pass: softmaxes, what became of them, and their products."""

    origins: dict[int, tuple[Tensor, int]] = field(default_factory=dict)  # tensor → its softmax
    softmaxes: list[tuple[str, torch.Size]] = field(default_factory=list)  # module, shape
    used: set[int] = field(default_factory=set)
    products: list[Product] = field(default_factory=list)

    def origin(self, t: Any) -> int | None:
        """The number of the softmax that made these weights; None for any other tensor."""
        found = self.origins.get(id(t))
        return None if found is None else found[1]

    def note(self, t: Any, number: int) -> None:
        self.origins[id(t)] = (t, number)  # kept alive, so that the id stays its own


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention: ``weights`` A (B, heads, L, S), rows by query; ``gradient`` ∂f/∂A likewise."""

    module: str
    weights: Tensor
    gradient: Tensor


Rule = Callable[[Call], Any]


def starting(rule: Rule) -> Rule:
    """A softmax; over the last of three dimensions or more it may be an attention."""

    def softmax(call: Call) -> Any:
        out, seen, dim = rule(call), _seen(call), call.get("dim", -1)
        if isinstance(dim, int) and out.ndim > 2 and dim % out.ndim == out.ndim - 1:
            seen.note(out, len(seen.softmaxes))
            seen.softmaxes.append((call.context.module_path(), out.shape))
        return out

    return softmax


def passing(rule: Rule) -> Rule:
    """``rule``, behind which attention weights are still known as such."""

    def passed(call: Call) -> Any:
        seen = _seen(call)
        found = [(t.shape, seen.origin(t)) for t in call.active]
        out = rule(call)
        for shape, number in found:
            if number is not None and isinstance(out, Tensor) and out.shape[-2:] == shape[-2:]:
                seen.note(out, number)
        return out

    return passed


def ending(rule: Rule) -> Rule:
    """A matrix product; with attention weights on its left they are noted."""

    def product(call: Call) -> Any:
        seen = _seen(call)
        if call.operator == "einsum":
            found = einsum_product(call, lambda t: seen.origin(t) is not None)
        else:
            left, right = call.get("input"), call.get("other")
            left, right = (right, left) if call.reverse else (left, right)
            found = None if seen.origin(left) is None else matmul_product(call, left, right)
        if found is not None:
            seen.products.append(found)
            seen.used.add(seen.origins[id(found.weights)][1])
        return rule(call)

    return product


class Watching(OrdinaryTracer):
    """Runs a model in its ordinary form, and notes its attentions."""

    def __init__(self, model: nn.Module | None = None, **options: Any) -> None:
        super().__init__(model, rules=_watched(table()), **options)


def _watched(rules: dict[str, Operator]) -> dict[str, Operator]:
    """The rules of the ordinary model, those that attentions pass through with a note."""
    moving = [name for name, known in OPERATORS.items() if known.moves in _MOVES]
    products = [name for name in of_kind("layer") if not OPERATORS[name].factors]
    stages = {starting: ["softmax"], passing: [*moving, *_SCALING], ending: products}
    for stage, names in stages.items():
        for name in names:
            rules[name] = rules[name].with_rule(stage(rules[name].rule))
    row = rules["scaled_dot_product_attention"]
    return rules | {"scaled_dot_product_attention": row.with_rule(in_parts, composite=True)}


def _seen(call: Call) -> Seen:
    return call.context.notes.setdefault("attention", Seen())


class AttentionRun:
    """One pass of the ordinary model, of which every self-attention over one sequence is known.

    ``f`` (B,) is the explained number and ``index`` (B,) its class.

    Raises:
        UnsupportedOperator: attention that is no map between the tokens of the input.
        ModelError: the model has no attention.
    """

    def __init__(self, question: Question, resample: str = "nearest") -> None:
        choose("resample", resample, RESAMPLINGS)
        self.resample = resample
        self.run = question.ordinary_run(bias="mapped", tracer=Watching)
        self.inputs = self.run.inputs
        target, output = question.target, question.output
        seen = self.run.mode.notes.get("attention", Seen())
        self.products: list[Product] = seen.products
        with torch.inference_mode(False), torch.enable_grad(), self.run.mode:
            logits = pick_output(self.run.out, output)
        raise_opaque(self.run.mode, logits)
        _check(seen, self.inputs.ones)
        with torch.inference_mode(False), torch.enable_grad(), self.run.mode:
            f, self.index = select(logits, target, self.inputs.samples)
        raise_opaque(self.run.mode, f)
        chosen = self.index if target is None else target
        check_departures(self.run, f, lambda twin: twin._select(chosen, output)[0])
        self.f = f.reshape(-1) if self.inputs.samples == 1 else f
        if self.f.shape != (self.inputs.samples,):
            raise TargetError(
                f"the target gives {self.f.numel()} numbers for {self.inputs.samples} samples, "
                "each of which has attention maps of its own.",
                argument="target",
                got=f"{self.f.numel()} numbers",
                expected=f"{self.inputs.samples} numbers",
                remedy="Return one number per sample.",
            )
        check_finite(self.f)
        if not self.f.requires_grad:
            text = "the explained output does not depend on the input."
            raise TargetError(text, argument="target")

    @property
    def tokens(self) -> int:
        return self.products[0].keys.cells.shape[1]

    def weights(self) -> list[Tensor]:
        """A of each layer in the order of the calls, (B, heads, tokens, tokens)."""
        return [self._split(p.weights.detach()) for p in self.products]

    def gradients(self, first: int = 0) -> list[Tensor]:
        """∂f/∂A of each layer from the ``first`` on; zero where f does not depend on it."""
        wrt = [p.weights for p in self.products[first:]]
        try:
            with own_precision(self.f):
                found = torch.autograd.grad(
                    self.f, wrt, torch.ones_like(self.f), True, allow_unused=True
                )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ModelError(
                f"the model runs, but its gradient cannot be taken: {reason(error)}.",
                argument="model",
                remedy="Turn gradient checkpointing off; write in place only into what no other "
                "operator needs.",
            ) from error
        filled = [torch.zeros_like(t) if g is None else g for g, t in zip(found, wrt, strict=True)]
        return [self._split(g) for g in filled]

    def _split(self, t: Tensor) -> Tensor:
        return t.reshape(self.inputs.samples, -1, *t.shape[-2:])

    def start(self, query: int | str) -> Tensor:
        """Weights of the tokens whose rows are read, (B, tokens), each row with the sum one.

        ``"auto"``: those that f reads, evenly. In the last layer f depends on the weights of no
        other query: of the class token alone, of the last token, or of all.
        """
        n = self.tokens
        if isinstance(query, str) and query.removeprefix("-").isdecimal():  # as it was typed
            query = int(query)
        if isinstance(query, int) and not isinstance(query, bool):
            if not -n <= query < n:
                raise wrong("query", query, f"the number of one of {n} tokens")
            rows = torch.zeros(self.inputs.samples, n, device=self.f.device)
            rows[:, query] = 1
        elif query == "mean":
            rows = self.located().float()
        elif query == "auto":
            (last,) = self.gradients(len(self.products) - 1)
            rows = (last != 0).any(-1).any(1).float()
            rows = torch.where(rows.any(1, keepdim=True), rows, torch.ones_like(rows))
        else:
            raise wrong("query", query, "a token (0 the first, -1 the last), 'mean' or 'auto'")
        rows = rows.to(self.products[0].weights.dtype)
        return rows / rows.sum(1, keepdim=True)

    def located(self) -> Tensor:
        """Which tokens have a place on the input (B, tokens); a class token has none."""
        return self.products[0].keys.located()

    def explanation(self, relevance: Tensor) -> Explanation:
        """The relevance of tokens (B, tokens) at the places of the input from which they come.

        What tokens without a place have is left out, and else the sum stays.
        """
        maps = spread_over_locations(
            self.inputs, self.products[0].keys, relevance, self.resample == "bilinear"
        )
        contributions = over_channels(self.inputs, maps)
        return explanation_of(self.inputs, self.f.detach(), self.index, contributions)


def _check(seen: Seen, ones: Sequence[Tensor]) -> None:
    """Refuses a model without attention, or with one that did not end in a product as known."""
    for number, (module, shape) in enumerate(seen.softmaxes):
        if number not in seen.used and shape[-1] == shape[-2]:
            raise UnsupportedOperator(
                "softmax",
                module,
                f"its weights {tuple(shape)} look like an attention, but are not multiplied with "
                "values as weights @ values",
                "Attention maps need every attention of the model; use another method.",
            )
    if not seen.products:
        raise ModelError(
            "the model has no softmax attention, so there are no attention maps of it.",
            argument="model",
            remedy="Use another method; omenn.methods() lists them.",
        )
    first = seen.products[0]
    for p in seen.products:
        if not same_places(p.queries, p.keys, ones):
            raise p.refused("its queries are other tokens than its keys (cross-attention)")
        if p.weights.shape[-1] != first.weights.shape[-1]:
            raise p.refused(
                f"the number of tokens changes, {first.weights.shape[-1]} in module "
                f"'{first.module}' and {p.weights.shape[-1]} here"
            )
        if not same_places(p.keys, first.keys, ones):
            raise p.refused(f"its tokens are not those of module '{first.module}'")


@alone()
def attention_maps(
    model: Any,
    inputs: Any,
    target: Target = None,
    *,
    output: Any = None,
    channel_dim: int | None = None,
) -> list[Layer]:
    """The attention weights of every layer, in the order of the calls, with their gradients.

    A (B, heads, L, S): row l holds the weights with which query l sums up the values, so rows have
    the sum one. ∂f/∂A is the derivative of the ordinary network. All spellings of attention are
    seen: ``F.scaled_dot_product_attention``, ``nn.MultiheadAttention``, softmax and product.

    Raises:
        UnsupportedOperator: attention in windows, across sequences, across channels, or over a
            number of tokens that changes; the module is named.
        ModelError: the model has no attention.

    Example:
        >>> import torch
        >>> from omenn.attribution.attention_maps import attention_maps
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
        >>> x, first = torch.randn(1, 5, 8), lambda out: out[:, 0, 0]
        >>> (one,) = attention_maps(layer, x, first)
        >>> assert one.module == "self_attn" and one.weights.shape == (1, 2, 5, 5)
        >>> assert torch.allclose(one.weights.sum(-1), torch.ones(1, 2, 5))
    """
    question = Question(model, inputs, target, output=output, channel_dim=channel_dim)
    run = AttentionRun(question)
    made = zip(run.products, run.weights(), run.gradients(), strict=True)
    return [Layer(p.module, weights, gradient) for p, weights, gradient in made]
