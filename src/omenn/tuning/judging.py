"""One model, judged picture by picture: its answers without parts, and the maps of methods."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

import omenn
from omenn.check import SEEDS, choose, misshapen, real, whole, wrong
from omenn.engine.digest import digest
from omenn.engine.explainable import check_model
from omenn.engine.model_state import State
from omenn.engine.target import pick_output
from omenn.errors import InputError, OmennError, reason
from omenn.metrics.cell_unions import Unions
from omenn.metrics.explainers import TRIVIAL
from omenn.metrics.removal import FILLS
from omenn.tuning.candidates import Candidate


@dataclass(frozen=True)
class Settings:
    """How pictures are changed: see :func:`omenn.tune`."""

    sets: int = 64
    across: int = 14
    share: float = 0.2
    fill: str | float = "blur"
    points: int = 11
    seed: int = 0
    chunk: int = 16

    def __post_init__(self) -> None:
        for name, least in (("sets", 2), ("across", 2), ("points", 2), ("seed", 0), ("chunk", 1)):
            most = SEEDS[1] // 2 if name == "seed" else None
            object.__setattr__(self, name, whole(name, getattr(self, name), least, most))
        real("share", self.share, 0, 1)
        if isinstance(self.fill, (int, float)):
            real("fill", self.fill)
        else:
            choose("fill", self.fill, FILLS)


@dataclass(frozen=True)
class Judged:
    """What one picture said.

    ``target``: the class that was explained. ``level``: the model answers the same whatever is
    replaced, so the picture says nothing. ``scores``: the correlation of each map, 0 where a map is
    constant. ``checks``: insertion minus deletion. ``errors``: why there is no map.
    """

    target: int
    level: bool
    scores: Mapping[str, float]
    checks: Mapping[str, float]
    errors: Mapping[str, str]


class Judge:
    """Runs the ordinary model and its explanations; both leave the model as it is.

    Raises:
        ModelError: a model in training mode, or one that cannot be explained.
    """

    def __init__(self, model: Any, output: Any, settings: Settings) -> None:
        check_model(model, None)
        self.model, self.output, self.settings = model, output, settings
        self._state = State(model)

    def f(self, pictures: Tensor) -> Tensor:
        """The logits of pictures (n, C, H, W).

        Raises:
            InputError: the model cannot take them.
        """
        given = pictures.detach()
        try:
            out = self._state.watched(lambda: self.model(given.clone()))
        except (OmennError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            shape = tuple(given.shape[1:])
            raise InputError(
                f"the model cannot take pictures of the shape {shape}: {reason(error)}.",
                argument="images",
                got=str(shape),
                remedy="Prepare them as the model takes them.",
            ) from error
        return pick_output(out, self.output)

    def asked(self, image: Tensor) -> Unions:
        """The answers of the model for a picture (1, C, H, W); the unions are of its content."""
        s = self.settings
        name = f"{digest([image.cpu()])} {s.seed}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        options: dict[str, Any] = {"across": s.across, "share": s.share, "fill": s.fill}
        return Unions.of(self.f, image, runs=s.sets, seed=seed, chunk=s.chunk, **options)

    def map_of(self, candidate: Candidate, image: Tensor, target: int) -> Tensor:
        """The map (H, W) of a picture.

        Raises:
            OmennError: whatever the method raises, or a sum that is not what it promises.
        """
        given = {} if self.output is None else {"output": self.output}
        options = {**given, **candidate.options}
        e = omenn.explain(self.model, image, target, method=candidate.method, **options)
        matrix = e.matrix
        if not isinstance(matrix, Tensor) or matrix.shape != (1, *image.shape[2:]):
            got = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            raise InputError(
                f"'{candidate.name}' gives maps of the form {got}, not one number a pixel.",
                argument="candidates",
                got=str(got),
                expected=str((1, *image.shape[2:])),
                remedy="Choose a method whose maps lie on the picture.",
            )
        if e.promise == "exact" and not e.exact:
            raise InputError(
                f"the sum of '{candidate.name}' misses the logit by {float(e.residual[0]):.2g}.",
                argument="candidates",
                got=candidate.name,
                remedy=f"The cause: {e.cause}." if e.cause else "Run omenn certify.",
            )
        return matrix[0].detach()

    def chosen_by(self, image: Tensor, candidates: Sequence[Candidate]) -> Judged:
        """A picture to choose by: every candidate is judged."""
        asked = self.asked(image)
        return self._judged(asked, {c.name: self._mapper(asked, c) for c in candidates}, False)

    def held_out(self, image: Tensor, finalists: Sequence[Candidate], check: bool) -> Judged:
        """A held-out picture: the finalists and the maps that do not depend on the model."""
        asked = self.asked(image)
        makers = {c.name: self._mapper(asked, c) for c in finalists}
        targets = torch.tensor([asked.target], device=image.device)
        for name, trivial in TRIVIAL.items():
            makers[name] = lambda trivial=trivial: trivial(image, targets)[0]
        return self._judged(asked, makers, check)

    def _mapper(self, asked: Unions, candidate: Candidate) -> Callable[[], Tensor]:
        return lambda: self.map_of(candidate, asked.image, asked.target)

    def _judged(
        self, asked: Unions, makers: Mapping[str, Callable[[], Tensor]], check: bool
    ) -> Judged:
        if asked.level:
            return Judged(asked.target, True, {}, {}, {})
        scores: dict[str, float] = {}
        checks: dict[str, float] = {}
        errors: dict[str, str] = {}
        points, seed = self.settings.points, self.settings.seed
        for name, maker in makers.items():
            try:
                map = maker()
                score = asked.correlation(map)
            except Exception as error:  # a method of a user may raise anything
                errors[name] = said(error)
                continue
            scores[name] = 0.0 if math.isnan(score) else score
            if check:
                checks[name] = asked.insertion_deletion(map, points=points, seed=seed)
        return Judged(asked.target, False, scores, checks, errors)


def said(error: Exception) -> str:
    """Why there is no map, in one line."""
    if isinstance(error, OmennError):
        return " ".join(str(error).split())
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "not enough memory."
    return f"unexpected {type(error).__name__}: {reason(error)}."


class Pictures:
    """Pictures as the model takes them, one at a time: (1, C, H, W).

    Raises:
        InputError: neither a tensor (N, C, H, W) nor a sequence of pictures; none at all.
    """

    def __init__(self, images: Any) -> None:
        if isinstance(images, Tensor) and (is_lazy(images) or images.is_meta):
            raise wrong("images", type(images), "a tensor that holds numbers")
        if isinstance(images, Tensor) and images.ndim != 4:
            raise misshapen("images", images, "(N, C, H, W)")
        sized = all(hasattr(images, name) for name in ("__len__", "__getitem__"))
        if not sized or isinstance(images, Mapping):
            raise wrong("images", images, "a tensor (N, C, H, W), or a sequence of pictures")
        if not len(images):
            raise wrong("images", images, "at least one picture")
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int, /) -> Tensor:
        one = self._images[index]
        if not isinstance(one, Tensor) or not one.is_floating_point():
            raise wrong(f"images[{index}]", one, "a tensor of floating-point numbers")
        one = one[None] if one.ndim == 3 else one
        if one.ndim != 4 or len(one) != 1 or 0 in one.shape:
            raise misshapen(f"images[{index}]", one, "(C, H, W) or (1, C, H, W)")
        return one.detach()

    def different(self, order: Sequence[int], most: int) -> list[int]:
        """The first ``most`` pictures of an order that differ from all before them."""
        seen: set[str] = set()
        found: list[int] = []
        for index in order:
            if len(found) == most:
                break
            key = digest([self[index].cpu()])
            if key not in seen:
                found.append(index)
                seen.add(key)
        return found
