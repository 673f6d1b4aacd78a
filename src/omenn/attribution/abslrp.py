"""absLRP: relative absolute magnitude, contrastive, each input of an operator normalised alone."""

from __future__ import annotations

import torch
from torch import Tensor

from omenn.attribution.abslrp_published import relevance as relevance_of
from omenn.attribution.abslrp_rules import BRANCHES, TINY, abslrp_rules
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.attribution.rule_table import stabilised
from omenn.check import choose, flag
from omenn.engine.backward import Gradients
from omenn.engine.run import FrozenRun
from omenn.engine.target import Contrast, Target, pick_output
from omenn.errors import InputError, TargetError
from omenn.explanation import Explanation

POOLING = ("auto", "divided", "undivided")


@attribution(
    "abslrp",
    promise="none",
    summary="relative absolute magnitude of contributions, target against the other classes",
    source="arXiv 2412.09311",
)
def abslrp(
    question: Question,
    *,
    pooling: str = "auto",
    contrastive: bool | None = None,
    published: bool = False,
) -> Explanation:
    """Relevance by relative absolute magnitude, R_i = 2 Σ_j max(x_i w_ij, 0) R_j / |h_j|.

    After every operator Σ|R| = 1 for each of its inputs alone, so that both branches of a residual
    addition count the same. The result is R₊ − R₋ over its largest magnitude, where R₊ starts at
    the target, and R₋ evenly at all other classes; ``Contrast(a, b)`` starts R₋ at b. A map of
    shares, not of the logit: its sum means nothing.

    Operators that move or select pass R on, and so do constant factors. Where all that could pass
    speaks against the number (a sum of negative parts), nothing passes, and R is zero.

    Args:
        pooling: max pooling ``"divided"`` by |h| (ResNet), ``"undivided"`` (VGG), or ``"auto"``:
            divided if the model adds two branches anywhere.
        published: what the code of the paper's authors computes, which is not its formula on
            networks with shortcuts and layer norms (``docs/parity.md``); for the networks that it
            knows, timm's VGG, ResNet and VisionTransformer and modules that are their children in
            order. The target is a class, against all others.
        contrastive: False gives R₊ alone. By default R₋ is subtracted wherever there are other
            classes: not for a target that is a callable, and not for a model of one output.

    Raises:
        InputError: the pooling is not known, an option does not go with ``published``.
        ModelError: ``published``, and a network that the published code does not know.
        TargetError: a contrast is asked for where there are no other classes, or, with a
            ``Contrast``, forbidden.

    Example:
        >>> import torch, omenn
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(),
        ...                           torch.nn.Linear(4, 2)).eval()
        >>> e = omenn.explain(net, torch.rand(1, 3), method="abslrp", contrastive=False)
        >>> assert abs(float(e.matrix.abs().max()) - 1) < 1e-6

    Source: Vukadin et al. 2024, arXiv 2412.09311, section 3.
    """
    choose("pooling", pooling, POOLING)
    flag("published", published)
    _check_contrast(question.target, contrastive)
    if published:
        return _published(question, pooling, contrastive)
    run = question.run_under(abslrp_rules(pooling), bias="places")
    branches = BRANCHES in run.mode.notes  # the target may add and subtract, too
    f, index = question.number(run)
    run.mode.notes[BRANCHES] = branches
    starts = _starts(question, run, f, index, contrastive)
    last = len(starts) - 1
    first, *against = [
        run.pull_back(start, retain=k < last).inputs for k, start in enumerate(starts)
    ]
    for other in against:
        first = [a - b for a, b in zip(first, other, strict=True)]
    return run.wrap(f, index, Gradients(_largest_one(run, first), [], {}))


def _published(question: Question, pooling: str, contrastive: bool | None) -> Explanation:
    no_class = callable(question.target) or isinstance(question.target, Contrast)
    changed = question.at is not None or question.output is not None
    if changed or contrastive is False or no_class:
        raise InputError(
            "published=True is the code of absLRP's authors: the map of a whole network for a "
            "class against all others.",
            argument="published",
            got="True",
            remedy="Omit at=, output=, contrastive=False and targets that are no class, or omit "
            "published.",
        )
    run = question.ordinary_run()
    f, index = question.number(run)
    inputs, model = run.inputs, question.model
    if len(inputs.leaves) != 1 or not inputs.batched or not isinstance(model, torch.nn.Module):
        raise InputError(
            "published=True is for one module and one input (B, …).",
            argument="published",
            got="True",
            remedy="Omit it: the formula takes any network and any inputs.",
        )
    x, divided = inputs.values[0], None if pooling == "auto" else pooling == "divided"
    _, relevance = relevance_of(model, x, index, divided)
    weight = torch.where(x == 0, 0, relevance / torch.where(x == 0, 1, x))
    return run.wrap(f, index, Gradients([weight], [], {}))


def _check_contrast(target: Target, contrastive: bool | None) -> None:
    if contrastive is not None:
        flag("contrastive", contrastive)
    if isinstance(target, Contrast):
        if contrastive is False:
            raise TargetError(
                "contrastive=False contradicts the target, a Contrast.",
                argument="contrastive",
                got="False",
                remedy="Give the class alone.",
            )
    elif callable(target) and contrastive:
        raise TargetError(
            "contrastive=True needs a class as the target: a callable has no other classes.",
            argument="contrastive",
            got="True",
            remedy="Give an index or a Contrast, or omit contrastive.",
        )


def _starts(
    question: Question, run: FrozenRun, f: Tensor, index: Tensor, contrastive: bool | None
) -> list[Tensor]:
    """What to pull back: R₊ and R₋ of one unit each, as numbers whose gradient is R / z."""
    target = question.target
    with torch.enable_grad():
        if callable(target) and not isinstance(target, Contrast):
            return [f / stabilised(f.detach(), TINY)]
        with run.mode:
            logits = pick_output(run.out, question.output)
        logits = logits.unsqueeze(1) if logits.ndim == 1 else logits
        chosen = torch.nn.functional.one_hot(index, logits.shape[1]).to(logits.dtype)
        shares = [chosen]
        if contrastive or (contrastive is None and logits.shape[1] > 1):
            against = target if isinstance(target, Contrast) else Contrast(index, "rest")
            shares.append(against.against(logits.detach()))
        unit = logits / stabilised(logits.detach(), TINY)
        return [(unit * share).sum(1) for share in shares]


def _largest_one(run: FrozenRun, weights: list[Tensor]) -> list[Tensor]:
    """Weights scaled so that the largest |R| of each sample is one."""
    inputs = run.inputs
    dims = [inputs.batch[k] if inputs.batched else None for k in range(len(weights))]
    tops = []
    for w, x, dim in zip(weights, inputs.values, dims, strict=True):
        size = (w * x).abs()
        size = size.unsqueeze(0) if dim is None else size.movedim(dim, 0)
        tops.append(size.reshape(inputs.samples, -1).amax(1))
    top = torch.stack(tops).amax(0)
    top = torch.where(top == 0, torch.ones_like(top), top)
    return [
        w / top
        if dim is None
        else (w.movedim(dim, -1) / top.repeat_interleave(w.shape[dim] // len(top))).movedim(-1, dim)
        for w, dim in zip(weights, dims, strict=True)
    ]
