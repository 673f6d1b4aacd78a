"""Training on birds with marks: one recipe, and what differs from one condition to another."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.xdnn.cue_data import Birds, Cue, Place
from omenn.models.architectures import BirdsConvNet
from omenn.models.augmentation import drawn_move, normalised, tinted
from omenn.models.fit import adamw, descend, epoch_generator, follow, rate
from omenn.xdnn import AttributionPrior, convert

REFERENCES = 512
BLOCK = 8  # side of what is summed up, in pixels
FRACTION = 0.375  # of a batch, for every prior: on all of it a term costs several times the loss


def blocks(attributions: Tensor, mask: Tensor, by_channel: bool = False) -> Tensor:
    """What blocks of pixels outside the mask add up to: mean over samples of Σ |Σ_block a|.

    The sums let pass what neighbouring pixels give and take back; single values would punish that
    noise more than a mark. ``by_channel``: of each channel, for what is not a part of the logit.
    """
    outside = (~mask) * attributions
    if not by_channel:
        outside = outside.sum(1, keepdim=True)
    sums = F.avg_pool2d(outside, BLOCK) * BLOCK**2
    return sums.abs().sum((1, 2, 3)).mean()


PENALTIES: dict[str, Callable[..., Tensor]] = {
    "blocks": blocks,
    "blocks by channel": partial(blocks, by_channel=True),
}


@dataclass(frozen=True)
class Recipe:
    """The same for all conditions.

    ``widths`` are those of the stages of a convolutional network without normalisation: priors are
    about the network in evaluation mode, which so is the one that is trained. The weight of a
    prior rises over the share ``rise`` of the steps; all of it at once, and nothing is learnt.
    """

    epochs: int = 5
    train_scenes: int = 9_984
    validation_scenes: int = 1_000
    test_scenes: int = 2_000
    widths: tuple[int, ...] = (24, 48, 96)
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    warmup: float = 0.1
    rise: float = 0.4
    averaging: float = 0.98
    clip: float = 1.0


@dataclass(frozen=True)
class Condition:
    """What is trained: the network, the marks it sees, and the prior, if any.

    ``treatment`` is done to a batch: ``"other masks"`` gives every picture the mask of another,
    ``"other backgrounds"`` puts every bird before the background of another.
    """

    label: str
    network: Literal["regular", "x"] = "regular"
    cue: Cue = "true"
    place: Place = "corner"
    method: str | None = None
    weight: float = 0.0
    fraction: float = FRACTION
    penalty: str = "blocks"
    options: tuple[tuple[str, Any], ...] = ()
    treatment: Literal["other masks", "other backgrounds"] | None = None


class Centred(nn.Module):
    """The logits minus their mean: a mark that lowers all other classes does not go unseen."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        return logits - logits.mean(1, keepdim=True)


def network_of(condition: Condition, recipe: Recipe, seed: int) -> nn.Module:
    """Untrained weights; those of the X network are the regular ones without additive terms."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = BirdsConvNet(widths=recipe.widths)
    if condition.network == "x":
        network = convert(network, norm="scale", seed=seed)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def prior_of(condition: Condition, birds: Birds, seed: int) -> AttributionPrior | None:
    """The loss term of a condition: attribution outside the birds."""
    if condition.method is None:
        return None
    options = dict(condition.options)
    if condition.method == "expected-gradients":
        options["references"] = normalised(birds.images[:REFERENCES])
    reasons = PENALTIES[condition.penalty]
    return AttributionPrior(
        reasons,
        condition.weight,
        condition.method,
        fraction=condition.fraction,
        seed=seed,
        **options,
    )


def moved(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures and their masks, mirrored and shifted alike; pictures varied in light and tint."""
    move = drawn_move(len(images), images.shape[-1], generator)
    return tinted(move(images), generator), move(masks)


def accuracy(network: nn.Module, birds: Birds, batch_size: int = 250) -> float:
    """Share of pictures whose largest logit is the bird's class."""
    network.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(birds), batch_size):
            logits = network(normalised(birds.images[start : start + batch_size]))
            right += int((logits.argmax(1) == birds.labels[start : start + batch_size]).sum())
    return right / len(birds)


class Training:
    """A network on its way, one step at a time."""

    def __init__(self, condition: Condition, recipe: Recipe, seed: int, birds: Birds) -> None:
        self.condition, self.recipe, self.seed, self.birds = condition, recipe, seed, birds
        self.network = network_of(condition, recipe, seed)
        self.centred = Centred(self.network)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.prior = prior_of(condition, birds, seed)
        self.optimiser = adamw(self.network, recipe.learning_rate, recipe.weight_decay)
        self.done = 0
        self.losses: list[tuple[float, float]] = []

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return len(self.birds) // self.recipe.batch_size

    def epoch(self) -> float:
        """One pass over the birds, in an order that all conditions share; CPU seconds."""
        started = time.process_time()
        for rows, generator in self.batches():
            self.step(rows, generator)
        return time.process_time() - started

    def batches(self) -> Iterator[tuple[Tensor, torch.Generator]]:
        number = self.done // self.steps
        generator = epoch_generator(self.seed, number)
        order = torch.randperm(len(self.birds), generator=generator)
        size = self.recipe.batch_size
        for k in range(self.steps):
            yield order[k * size : (k + 1) * size], generator

    def step(self, rows: Tensor, generator: torch.Generator) -> None:
        images, masks = self.batch(rows, generator)
        labels = self.birds.labels[rows]
        loss = F.cross_entropy(self.network(images), labels)
        term = loss.new_zeros(())
        if self.prior is not None:
            self.prior.weight = self.condition.weight * self._risen()
            term = self.prior(self.centred, images, labels, mask=masks)
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        descend(loss + term, self.optimiser, self.network.parameters(), self.recipe.clip)
        follow(self.average, self.network, self.done, self.recipe.averaging)
        self.losses.append((float(loss.detach()), float(term.detach())))
        self.done += 1

    def batch(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, masks = normalised(self.birds.images[rows]), self.birds.masks[rows]
        images, masks = moved(images, masks, generator)
        if self.condition.treatment == "other masks":
            masks = masks.roll(1, 0)
        elif self.condition.treatment == "other backgrounds":
            images = before_others(images, masks)
        return images.contiguous(memory_format=torch.channels_last), masks

    def _rate(self) -> float:
        recipe = self.recipe
        return rate(self.done, recipe.epochs * self.steps, recipe.learning_rate, recipe.warmup)

    def _risen(self) -> float:
        """The share of a prior's weight at this step."""
        return min(1.0, (self.done + 1) / (self.recipe.rise * self.recipe.epochs * self.steps))

    def averaged(self) -> nn.Module:
        """The mean of the weights over the last steps."""
        return copy.deepcopy(self.average).eval()

    def state(self) -> dict[str, Any]:
        """What an interrupted training needs to go on, between two epochs."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "prior": self.prior and self.prior.state_dict(),
            "done": self.done,
            "losses": self.losses,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.prior is not None:
            self.prior.load_state_dict(state["prior"])
        self.done, self.losses = state["done"], state["losses"]


def before_others(images: Tensor, masks: Tensor) -> Tensor:
    """Every bird before the background of the next picture, whose own bird is painted over.

    Where that other bird was, the mean colour of its background stands.
    """
    ground = ~masks
    mean = (images * ground).sum((2, 3), keepdim=True) / ground.sum((2, 3), keepdim=True)
    scenery = torch.where(ground, images, mean)
    return torch.where(masks, images, scenery.roll(1, 0))
