"""Training a copy of a model on, so that pictures with a deleted cell are nothing new to it.

Source: Hesse, Schaub-Meyer, Roth 2024, "Benchmarking the Attribution Quality of Vision Models",
NeurIPS, arXiv 2407.11910.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.check import real, whole
from omenn.engine.digest import digest
from omenn.engine.target import pick_output
from omenn.errors import InputError, ModelError
from omenn.metrics.explainers import Explainer
from omenn.metrics.idsds import CELLS, Fill, cell_mask, filling, idsds
from omenn.metrics.maps import checked_images, checked_targets, of_targets
from omenn.metrics.metric_registry import Measure, metric
from omenn.metrics.score import Score
from omenn.models.fit import Diverged, Training, descend, epoch_generator
from omenn.models.randomness import seeded


class Pictures(Protocol):
    """Pictures (C, H, W), as the model takes them, with their classes, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """As published; the rate becomes a tenth after each ``step`` epochs.

    ``published``: zeros beyond the edges of the blurred picture of ``fill="blur"``, as in
    :func:`omenn.metrics.idsds.idsds`. ``share`` of the pictures of a batch, on average, have one
    cell deleted, each as likely.
    """

    epochs: int = 30
    batch: int = 256
    rate: float = 0.001
    momentum: float = 0.9
    decay: float = 1e-4
    step: int = 10
    share: float = 0.5
    cells: int = CELLS
    fill: Fill = "zeros"
    published: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("step", 1), ("cells", 2), ("seed", 0)):
            whole(name, getattr(self, name), least)
        for name, most in (("rate", None), ("momentum", 1), ("decay", None), ("share", 1)):
            real(name, getattr(self, name), 0, most)


def fine_tune(
    model: nn.Module,
    data: Pictures | tuple[Tensor, Tensor],
    recipe: Recipe | None = None,
    *,
    loss: Loss = F.cross_entropy,
    checkpoint: Path | str | None = None,
    tick: Callable[[int, float], Any] = lambda epoch, loss: None,
) -> nn.Module:
    """A copy of the model, trained on pictures some of which lack a cell; in evaluation mode.

    All parameters are trained by SGD, with the model in training mode. Orders, cells and what the
    model draws (dropout) come from ``recipe.seed`` and the number of the epoch: the same arguments
    give the same weights on a CPU, also after an interruption, if ``checkpoint`` is given. The
    model and the global random numbers stay as they were.

    Args:
        data: anything with a length whose entries are pictures and classes, or (images, labels).
        recipe: by default as published.
        loss: logits, classes → a number; published is the binary cross-entropy for B-cos networks.
        checkpoint: a file that is written after each epoch, and read if it is there.
        tick: called with the number of epochs done and the mean loss.

    Raises:
        InputError: no pictures, of different sizes, sides that the cells do not divide.
        TargetError: a class that the model does not have.
        ModelError: nothing to train, or a loss that is not finite.
        WeightsError: the checkpoint is damaged, or of another training.
        OutputError: the checkpoint cannot be written.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> data = torch.randn(8, 1, 8, 8), torch.arange(8) % 2
        >>> tuned = fine_tune(net, data, Recipe(epochs=1, batch=4))
        >>> assert not torch.equal(tuned[1].weight, net[1].weight)

    Source: the module's docstring.
    """
    recipe = recipe or Recipe()
    pictures = _checked(data, recipe)
    run = _Run(model, recipe, loss, len(pictures), checkpoint)
    try:
        for mean in run.training.fit(recipe.epochs, lambda: run.train(pictures)):
            tick(run.training.epoch, mean)
    except Diverged as stop:
        raise ModelError(
            f"{stop} in epoch {run.training.epoch + 1}.",
            argument="rate",
            got=f"{recipe.rate:g}",
            remedy=f"Choose a smaller rate than {recipe.rate:g}, and check the pictures.",
        ) from stop
    return run.finished()


@metric(
    "idsds",
    Measure("idsds", headline=True),
    family="faithfulness",
    summary="cell-deletion after the model was fine-tuned on pictures without a cell",
    source="arXiv 2407.11910",
    of="labels",
)
def in_domain_deletion(
    tuned: Callable[[int, Recipe], nn.Module],
    make: Callable[[nn.Module], Explainer],
    images: Tensor,
    targets: Tensor,
    *,
    pictures: int = 1000,
    epochs: int = 5,
    batch: int = 32,
    rate: float = 0.001,
    cells: int = CELLS,
    fill: Fill = "zeros",
    published: bool = False,
    seed: int = 0,
    chunk: int = 64,
) -> Score:
    """:func:`omenn.metrics.idsds.idsds` of a model that is trained on with deleted cells first.

    Published are 30 epochs of all training pictures with batches of 256; the rate falls to a tenth
    after each third of the epochs, as there. ``tuned``: how many pictures, recipe → the model.
    """
    whole("pictures", pictures, 1)
    step = max(1, -(-epochs // 3)) if isinstance(epochs, int) else 1  # thirds, rounded up
    model = tuned(
        pictures, Recipe(epochs, batch, rate, step=step, seed=seed, cells=cells, fill=fill)
    )
    options: Any = {"cells": cells, "fill": fill, "published": published, "seed": seed}
    maps = make(model)(images, targets)
    f = lambda x: pick_output(model(x), None)  # noqa: E731
    return idsds(f, images, targets, maps, chunk=chunk, **options)


def deleted(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """The pictures, of which each lacks one cell with the probability ``recipe.share``."""
    batch = len(images)
    cell = torch.randint(recipe.cells**2, (batch,), generator=generator)
    chosen = torch.rand(batch, generator=generator) < recipe.share
    number = int(torch.randint(2**62, (), generator=generator))
    gone = cell_mask(torch.where(chosen, cell, -1), images, recipe.cells)
    return torch.where(gone, filling(images, recipe.fill, number, recipe.published), images)


class _Run:
    """A training in progress: the copy and its optimiser."""

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        loss: Loss,
        count: int,
        checkpoint: Path | str | None,
    ) -> None:
        self.model = copy.deepcopy(model)
        self.flags = [p.requires_grad for p in self.model.parameters()]
        if not self.flags:
            raise ModelError(
                "the model has no parameters, so there is nothing to train.", argument="model"
            )
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self.recipe, self.loss = recipe, loss
        self.device = next(self.model.parameters()).device
        known = {k: v for k, v in asdict(recipe).items() if k != "published" or v}
        state = self.model.state_dict()
        settings = {**known, "pictures": count, "weights": digest([*state.values()], [*state])}
        self.optimiser = torch.optim.SGD(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=recipe.rate,
            momentum=recipe.momentum,
            weight_decay=recipe.decay,
        )
        file = None if checkpoint is None else Path(checkpoint)
        parts = {"model": self.model, "optimiser": self.optimiser}
        self.training = Training(settings, parts, file, self.device)

    def train(self, pictures: Pictures) -> float:
        """One epoch; returns the mean loss."""
        recipe, epoch, total = self.recipe, self.training.epoch, 0.0
        generator = epoch_generator(recipe.seed, epoch)
        order = torch.randperm(len(pictures), generator=generator).tolist()
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.rate * 0.1 ** (epoch // recipe.step)
        self.model.train()
        number = int(torch.randint(2**31, (), generator=generator))
        with _drawing(number, self.device), torch.enable_grad():
            for rows in _batches(order, recipe.batch):
                images, labels = _stacked(pictures, rows)
                images = deleted(images, recipe, generator).to(self.device)
                labels = labels.to(self.device)
                value = self.loss(_checked_logits(self.model(images), labels), labels)
                total += descend(value, self.optimiser, self.model.parameters()) * len(rows)
        return total / len(pictures)

    def finished(self) -> nn.Module:
        for parameter, flag in zip(self.model.parameters(), self.flags, strict=True):
            parameter.grad = None
            parameter.requires_grad_(flag)
        return self.model.eval()


class _Tensors:
    """Images and labels as :class:`Pictures`."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def _checked(data: Any, recipe: Recipe) -> Pictures:
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        images = checked_images(data[0])
        data = _Tensors(images, checked_targets(data[1], len(images), images.device))
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise InputError(
            "data must be (images, labels) or have a length and pictures with classes by "
            f"number, got {type(data).__name__}.",
            argument="data",
            got=type(data).__name__,
            expected="(images, labels)",
        )
    if not len(data):
        raise InputError("data holds no pictures to train with.", argument="data")
    first = data[0]
    if not isinstance(first, (tuple, list)) or len(first) < 2 or not isinstance(first[0], Tensor):
        raise InputError(
            "data[0] must be a picture, a tensor (C, H, W), and its class, got "
            f"{type(first).__name__}.",
            argument="data",
            got=type(first).__name__,
        )
    height, width = first[0].shape[-2:]
    if height % recipe.cells or width % recipe.cells:
        raise InputError(
            f"cells={recipe.cells} must divide the sides of the pictures, {height} x {width} "
            "pixels.",
            argument="cells",
            got=str(recipe.cells),
        )
    return data


def _batches(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The last one takes a picture that would be alone: batch norm has no variance for one."""
    ends = list(range(size, len(order), size))
    if len(order) % size == 1 and ends:
        ends.pop()
    for start, end in zip([0, *ends], [*ends, len(order)], strict=True):
        yield order[start:end]


def _stacked(pictures: Pictures, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    entries = [pictures[row] for row in rows]
    shapes = sorted({tuple(entry[0].shape) for entry in entries})
    if len(shapes) > 1:
        raise InputError(
            f"the pictures of a batch have different shapes, {shapes[0]} and {shapes[1]}.",
            argument="data",
            got=str(shapes[1]),
            expected=str(shapes[0]),
            remedy="Resize them as the model takes them.",
        )
    images = torch.stack([entry[0] for entry in entries])
    return images, torch.tensor([int(entry[1]) for entry in entries])


def _checked_logits(output: Any, labels: Tensor) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(labels):
        got = (
            f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        )
        raise InputError(
            f"the model must return logits (n, classes) for n pictures, but returned {got}.",
            argument="model",
            got=got,
            expected="(n, classes)",
            remedy="Wrap it in a module that picks them.",
        )
    of_targets(output.detach(), labels)  # refuses a class that the model does not have
    return output


@contextmanager
def _drawing(number: int, device: torch.device) -> Iterator[None]:
    """What the model and the pictures draw comes from a number, on its device as well."""
    accelerators = [device] if device.type == "cuda" else []  # others are left as they are
    with seeded(number), torch.random.fork_rng(devices=accelerators):
        if accelerators:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield
