"""The common part of all trainings: seeded, resumable epochs, finite steps, a card."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from omenn.engine.trace.handler import Handler
from omenn.errors import WeightsError, of_file
from omenn.files.atomic import write_checkpoint, write_files
from omenn.models.checkpoints import read_checkpoint

Noted = TypeVar("Noted")


class Diverged(Exception):
    """A loss, its gradient or an output is not finite; the weights are those before the step."""


class Stateful(Protocol):
    """What a checkpoint holds: networks, optimisers, priors."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class Training:
    """The progress of a training, in memory and in the file ``checkpoint``.

    ``settings``: everything that determines the outcome; ``parts``: everything that changes, by
    name. If the file exists, the training continues from it.

    Raises WeightsError for a checkpoint that is damaged, has other settings or lacks a part.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        parts: Mapping[str, Stateful],
        checkpoint: Path | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings, self.parts, self.checkpoint = dict(settings), parts, checkpoint
        self.epoch, self.seconds = 0, 0.0
        self.history: list[Any] = []
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint, read_checkpoint(checkpoint, device))

    def _resume(self, path: Path, state: Any) -> None:
        found = state.get("settings") if isinstance(state, dict) else None
        if found != self.settings:
            known = found if isinstance(found, dict) else {}
            other = [key for key, value in self.settings.items() if known.get(key) != value]
            text = f"the checkpoint {path} belongs to another training: {', '.join(other)} differ."
            raise of_file(WeightsError, path, text, "Remove it, or choose another folder.")
        if lacking := [k for k in (*self.parts, "epoch", "seconds", "history") if k not in state]:
            why = "it is damaged, or of another version of omenn"
            text = f"the checkpoint {path} lacks {', '.join(lacking)}: {why}."
            raise of_file(WeightsError, path, text, "Remove it to start afresh.")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history = state["history"]

    def save(self) -> None:
        """Write the checkpoint, if one is wanted."""
        if self.checkpoint is not None:
            state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
            state |= {"settings": self.settings, "epoch": self.epoch}
            state |= {"seconds": self.seconds, "history": self.history}
            write_checkpoint(state, self.checkpoint)

    def fit(
        self, epochs: int, train_epoch: Callable[[], Noted], *, seconds_between: float = 0.0
    ) -> Iterator[Noted]:
        """Train the remaining epochs, and yield the result of ``train_epoch`` for each.

        A checkpoint is written after an epoch if ``seconds_between`` have passed since the previous
        one, and after the last epoch.
        """
        saved = time.monotonic()
        while self.epoch < epochs:
            started = time.monotonic()
            noted = train_epoch()
            self.epoch += 1
            self.seconds += time.monotonic() - started
            self.history.append(noted)
            if self.epoch == epochs or time.monotonic() - saved >= seconds_between:
                self.save()
                saved = time.monotonic()
            yield noted


class Best:
    """The weights of the first epoch with the largest score; ``epoch`` 0 means none yet."""

    def __init__(self) -> None:
        self.epoch, self.score = 0, -math.inf
        self.weights: Mapping[str, Tensor] = {}

    def note(self, epoch: int, score: float, network: nn.Module) -> None:
        """Keep the weights of ``network`` if the score is larger than before."""
        if score > self.score:
            self.epoch, self.score = epoch, score
            self.weights = copy.deepcopy(network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        vars(self).update(state)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Random numbers of one epoch, the same after an interruption."""
    return torch.Generator().manual_seed(1_000_003 * seed + epoch)


def descend(
    loss: Tensor,
    optimiser: torch.optim.Optimizer,
    parameters: Iterable[Tensor],
    clip: float = math.inf,
) -> float:
    """One step down the gradient of ``loss``, clipped to the length ``clip``; returns the loss.

    Raises Diverged, before the step, if the loss or the gradient is not finite.
    """
    optimiser.zero_grad()
    loss.backward()
    length = nn.utils.clip_grad_norm_(parameters, clip)
    value = float(loss.detach())
    for name, number in (("loss", value), ("length of the gradient", float(length))):
        if not math.isfinite(number):
            raise Diverged(f"the {name} is {number:g}")
    optimiser.step()
    return value


def adamw(network: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW without weight decay for biases and other vectors."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate)


def rate(step: int, steps: int, learning_rate: float, warmup: float) -> float:
    """Learning rate: a linear rise over a share of the steps, then half a cosine down to zero."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return learning_rate * (step + 1) / rise
    return learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def follow(average: nn.Module, network: nn.Module, step: int, most: float) -> None:
    """Move ``average`` towards ``network``: an exponential moving average over the steps.

    It keeps the share ``most`` of its value, and less in the first steps.
    """
    keep = min(most, (step + 1) / (step + 10))
    values = network.state_dict().values()
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), values, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)


class ExplicitAttention(Handler):
    """Attention as two products: in bfloat16 on a CPU the fused kernel takes 2.5 times as long."""

    def handle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args
            scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
            return scores.softmax(-1).to(value.dtype) @ value
        return super().handle(func, args, kwargs)


def write_network(network: nn.Module, card: Mapping[str, Any], weights: Path) -> Path:
    """Write ``weights`` (safetensors) and, in the same folder, the card as JSON with their hash."""
    from safetensors.torch import save

    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    content = save(state)
    card = {**card, "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    write_files({weights: content, weights.with_suffix(".json"): text.encode()})
    return weights


def machine(device: str) -> dict[str, Any]:
    """The machine that trained a network, for its card."""
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
