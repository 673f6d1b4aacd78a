"""What stands between omenn and captum: inputs, targets, randomness, and the caller's things.

captum attributes to tensors that it is given, by a function of them that returns one number per
row. Here that function is made: the model, then the target as the input itself fixed it
(along a path from a baseline the largest logit may be another's). captum gets copies, so what it
sets on tensors is gone with them; what it hangs on modules is taken off again.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from omenn.attribution.contributions import explanation_of
from omenn.attribution.question import Question
from omenn.attribution.registry import attribution
from omenn.check import wrong
from omenn.engine.explainable import check_model
from omenn.engine.inputs import Inputs
from omenn.engine.model_state import State
from omenn.engine.target import Contrast, check_finite, pick_output, select
from omenn.engine.trace.tracer import Tracer
from omenn.errors import InputError, MissingExtra, ModelError, OmennError, TargetError, reason
from omenn.explanation import Explanation

# (algorithms of captum, inputs, further arguments) → attributions
Attribute = Callable[[Any, tuple[Tensor, ...], tuple[Any, ...]], Any]


class Task:
    """A question as captum wants it: a function of tensors that returns one number per row.

    ``xs``: copies of the floating-point inputs. ``extras``: further tensors with a row per sample,
    which captum repeats when it repeats the inputs: what the model is given besides, and what the
    target is made of. ``f`` (B,) is the explained number and ``index`` (B,) its class.

    Raises:
        InputError: integer ids alone, or an input that the model does not take.
        TargetError: not one number per sample.
    """

    def __init__(self, name: str, question: Question) -> None:
        check_model(question.model, None)
        self.name, self.model = name, question.model
        self.target, self.output = question.target, question.output
        self.state = State(self.model)
        with torch.inference_mode(False):
            self._take(question)

    def _take(self, question: Question) -> None:
        """Copies of the inputs, and the explained number that they have."""
        self.inputs = inputs = Inputs(
            Tracer(None), question.inputs, "none", question.channel_dim, True
        )
        self.explained = [
            k
            for k, (_, v) in enumerate(inputs.items)
            if isinstance(v, Tensor) and v.is_floating_point()
        ]
        if not self.explained:
            raise InputError(
                f"method {self.name!r} explains floating-point inputs, but integer ids are given.",
                argument="inputs",
                got="integer ids",
                expected="floating-point tensors",
                remedy="Use another method, or pass embeddings to a function that calls the model "
                "with them.",
            )
        for k in self.explained:
            key, x = inputs.items[k]
            inputs.leaf(key, x.clone(), None)
        if inputs.mismatch is not None or any(len(x) != inputs.samples for x in inputs.values):
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs.values)
            raise InputError(
                f"method {self.name!r} needs inputs with the same first dimension, the batch, but "
                f"got {shapes}.",
                argument="inputs",
                got=shapes,
                expected="the same first dimension",
            )
        self.xs = tuple(x.detach().clone().requires_grad_() for x in inputs.values)
        self.beside = [
            k
            for k, (_, v) in enumerate(inputs.items)
            if k not in self.explained and isinstance(v, Tensor) and v.shape[0] == inputs.samples
        ]
        given = tuple(inputs.items[k][1].clone() for k in self.beside)
        self.f, self.index, self.chosen = self._settled(given)
        self.extras = (*given, *self.chosen)

    def _settled(self, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """f and its class for the input itself, and the tensors by which it is chosen again."""
        with torch.no_grad():
            try:
                out = self.state.watched(lambda: self._called(self.xs, given))
            except Exception as error:
                what = f"the model cannot take {self.inputs.described()}: {reason(error)}."
                raise InputError(what, argument="inputs") from error
            logits = pick_output(out, self.output)
            f, index = select(logits, self.target, self.inputs.samples)
        f = self._one_each(f, self.inputs.samples)
        check_finite(f)
        if not isinstance(self.target, Contrast):
            return f, index, () if callable(self.target) else (index,)
        weights = self.target.against(logits if logits.ndim > 1 else logits.unsqueeze(1))
        if self.target.b == "rest":
            return f, index, (index, weights)
        return f, index, (index, weights.argmax(1))

    def _called(self, xs: Sequence[Tensor], beside: Sequence[Tensor]) -> Any:
        """The model on rows of the inputs; it may write into what it is given."""
        new = dict(zip((*self.explained, *self.beside), (*xs, *beside), strict=True))
        items = [(key, new.get(k, v)) for k, (key, v) in enumerate(self.inputs.items)]
        items = [(key, v.clone() if isinstance(v, Tensor) else v) for key, v in items]
        args = [v for key, v in items if not isinstance(key, str)]
        with self.state.kept(shared=("input", "output")):
            return self.model(*args, **{key: v for key, v in items if isinstance(key, str)})

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The explained number of each row, (rows,), of inputs and extras of as many rows."""
        n, m = len(self.explained), len(self.beside)
        xs, beside, chosen = tensors[:n], tensors[n : n + m], tensors[n + m :]
        xs = [x.to(own.dtype) for x, own in zip(xs, self.xs, strict=True)]  # noise is float32
        logits, rows = pick_output(self._called(xs, beside), self.output), len(xs[0])
        if not chosen:
            return self._one_each(select(logits, self.target, rows)[0], rows)
        logits = logits.unsqueeze(1) if logits.ndim == 1 else logits
        f = _at(logits, chosen[0])
        if len(chosen) == 1:
            return f
        against = chosen[1]
        return f - ((logits * against).sum(1) if against.ndim > 1 else _at(logits, against))

    def _one_each(self, f: Tensor, rows: int) -> Tensor:
        if rows == 1 and f.numel() == 1:
            return f.reshape(1)
        if f.shape != (rows,):
            raise TargetError(
                f"the target gives {f.numel()} numbers for {rows} samples, and method "
                f"{self.name!r} explains each sample alone.",
                argument="target",
                got=f"{f.numel()} numbers",
                expected=f"{rows} numbers",
                remedy="Return one number per sample.",
            )
        return f

    def attributed(self, algorithm: str, of: Any = None, **options: Any) -> list[Tensor]:
        """What an algorithm of captum attributes, one tensor per explained input.

        ``of``: what it is made with, if that is not this task; ``options``: of ``attribute``.
        """

        def attribute(captum: Any, xs: tuple[Tensor, ...], extras: tuple[Any, ...]) -> Any:
            made = getattr(captum, algorithm)(self if of is None else of)
            return made.attribute(xs, additional_forward_args=extras, **options)

        return self.attributions(attribute)

    def attributions(self, attribute: Attribute) -> list[Tensor]:
        """What ``attribute`` makes of the inputs with captum, one tensor per explained input."""
        return self._run(attribute, self.xs, self.extras)

    def one_by_one(self, attribute: Attribute) -> list[Tensor]:
        """The same sample by sample, so that none depends on its neighbours."""
        found = []
        for k in range(self.inputs.samples):
            row = slice(k, k + 1)
            xs = tuple(x[row].detach().requires_grad_() for x in self.xs)
            found.append(self._run(attribute, xs, tuple(t[row].detach() for t in self.extras)))
        return [torch.cat(each) for each in zip(*found, strict=True)]

    def _run(
        self, attribute: Attribute, xs: tuple[Tensor, ...], extras: tuple[Any, ...]
    ) -> list[Tensor]:
        captum = captum_for(self.name)
        try:
            with self.state.kept(), quiet(), torch.inference_mode(False):
                found = attribute(captum, xs, extras)
        except (OmennError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ModelError(
                f"captum cannot explain this model by {self.name!r}: {reason(error)}.",
                argument="model",
                remedy="Use another method.",
            ) from error
        found = found if isinstance(found, tuple) else (found,)
        return [t.detach() for t in found]

    def explanation(self, contributions: Sequence[Tensor]) -> Explanation:
        return explanation_of(self.inputs, self.f, self.index, contributions)


def captum(
    name: str, **about: Any
) -> Callable[[Callable[..., list[Tensor]]], Callable[..., list[Tensor]]]:
    """A decorator that registers ``function(task, *, **options)`` as a method.

    The function returns a tensor for each explained input, shaped like it: the contributions.
    """

    def register(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
        @wraps(function)
        def explanation(question: Question, **options: Any) -> Explanation:
            task = Task(name, question)
            return task.explanation(function(task, **options))

        attribution(name, at=False, extra="peers", **about)(explanation)
        return function

    return register


def captum_for(name: str) -> Any:
    """``captum.attr``.

    Raises:
        MissingExtra: captum is not installed.
    """
    try:
        return importlib.import_module("captum.attr")
    except ImportError:
        raise MissingExtra("captum", "peers", f"the method '{name}'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without what captum says about the flags and hooks that it sets: they are undone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*(Input Tensor|Setting forward, backward)")
        yield


@contextmanager
def seeded(seed: int, x: Tensor) -> Iterator[None]:
    """The global random numbers that captum draws, from a seed; as they were, afterwards."""
    import numpy as np

    state = np.random.get_state()
    devices = [x.device] if x.is_cuda else []
    try:
        with torch.random.fork_rng(devices):
            torch.default_generator.manual_seed(seed)
            if x.is_cuda:
                torch.cuda.manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        np.random.set_state(state)


def baselines(task: Task, baseline: Any) -> tuple[Tensor, ...]:
    """One baseline per explained input, of its shape: zero, a number, or tensors that broadcast.

    Raises:
        InputError: it does not fit.
    """
    many = isinstance(baseline, (tuple, list))
    given = list(baseline) if many else [baseline] * len(task.xs)
    if len(given) != len(task.xs):
        raise InputError(
            f"baseline has {len(given)} parts, but {len(task.xs)} inputs are explained.",
            argument="baseline",
            got=f"{len(given)} parts",
            expected=f"{len(task.xs)} parts",
            remedy="Give one for each, or a single number.",
        )
    found = []
    for x, b in zip(task.xs, given, strict=True):
        try:
            value = torch.as_tensor(0.0 if b is None else b, dtype=x.dtype, device=x.device)
            found.append(value.detach().expand(x.shape).clone())
        except (RuntimeError, TypeError, ValueError):
            expected = f"a number, or a tensor that expands to {tuple(x.shape)}"
            raise wrong("baseline", b, expected) from None
    return tuple(found)


def _at(logits: Tensor, index: Tensor) -> Tensor:
    return logits.gather(1, index.unsqueeze(1)).squeeze(1)
