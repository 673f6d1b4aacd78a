"""Training of the bundled networks on generated birds: seeded, resumable, with a progress bar.

The loss is the cross-entropy averaged over all classes that agree with the visible parts
(FunnyBirds' multi-target loss), plus, for every visible part, the cross-entropy of its instance
under a linear layer on the same features. These part layers give 26 dense targets beside 50
sparse ones, shorten the training several times, and are thrown away at the end. The weights kept
are an exponential moving average over the steps.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from omenn.data.atomic import replacing
from omenn.data.birds import INSTANCES, PARTS
from omenn.data.birds.arrays import SceneArrays, scene_arrays
from omenn.data.progress import progress_bar
from omenn.errors import InputError, ModelError, WeightsError, did_you_mean, reason
from omenn.models.architectures import ARCHITECTURES, Classifier
from omenn.models.bundled import MEAN, SIZE, STD


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome beside the seed and the rounding of the machine."""

    epochs: int
    learning_rate: float
    weight_decay: float = 0.02
    batch_size: int = 128
    warmup: float = 0.05
    averaging: float = 0.998
    part_loss: float = 1.0
    clip: float = 1.0
    train_scenes: int = 30_000
    validation_scenes: int = 1_000
    test_scenes: int = 5_000
    precision: Literal["float32", "bfloat16"] = "bfloat16"


RECIPES: dict[str, Recipe] = {
    "birds-resnet": Recipe(epochs=5, learning_rate=3e-3),
    "birds-vit": Recipe(epochs=6, learning_rate=1e-3, weight_decay=0.05),
    "birds-convnet": Recipe(epochs=8, learning_rate=1e-3),
}


def normalised(images: Tensor) -> Tensor:
    """Pixels 0..255 (B, 3, S, S) as the networks read them: (v / 255 - MEAN) / STD."""
    return (images.float() / 255 - MEAN[0]) / STD[0]


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored, shifted by up to three pixels, varied a little in brightness, contrast and tint.

    (B, 3, S, S) in [-1, 1] → the same shape. A mirrored bird faces the other way: same class.
    """
    batch, _, size, _ = images.shape
    device = images.device

    def between(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(*shape, generator=generator)).to(device)

    shift = torch.randint(-3, 4, (2, batch, 1), generator=generator)
    rows, columns = (torch.arange(size) + shift).clamp(0, size - 1)
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns).to(device)
    number = torch.arange(batch, device=device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[number, rows.to(device)[:, :, None], columns[:, None, :]]
    tint = between(-0.1, 0.1, batch, 1, 1, 1) + between(-0.05, 0.05, batch, 1, 1, 3)
    return (moved * between(0.8, 1.2, batch, 1, 1, 1) + tint).permute(0, 3, 1, 2)


def accuracy(network: nn.Module, scenes: SceneArrays, batch_size: int = 250) -> float:
    """Share of scenes whose largest logit is their class; float32, evaluation mode."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(scenes), batch_size):
            images = normalised(scenes.images[start : start + batch_size].to(device))
            labels = scenes.labels[start : start + batch_size].to(device)
            right += int((network(images).argmax(1) == labels).sum())
    network.train(was_training)
    return right / len(scenes)


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share seen in ``count`` independent trials; 95 % for z = 1.96.

    (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n)  — E. B. Wilson, JASA 22 (1927).

    >>> low, high = wilson(1.0, 5000)
    >>> round(low, 4), round(high, 4)
    (0.9992, 1.0)
    """
    middle = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z * z / count
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


class _ExplicitAttention(TorchFunctionMode):
    """Attention as two products: in bfloat16 on a CPU the fused kernel takes 2.5 times as long."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args
            scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
            return scores.softmax(-1).to(value.dtype) @ value
        return func(*args, **(kwargs or {}))


class _Student(nn.Module):
    """The network with its part layers, which exist in training only."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network
        width = network.head.in_features
        self.parts = nn.ModuleList(nn.Linear(width, INSTANCES[part]) for part in PARTS)

    def forward(
        self, images: Tensor, compatible: Tensor, parts: Tensor, part_loss: float
    ) -> Tensor:
        features = self.network.features(images)
        loss = F.cross_entropy(self.network.head(features).float(), compatible)
        for layer, instance in zip(self.parts, parts.unbind(1), strict=True):
            seen = (instance >= 0).sum().clamp(min=1)
            errors = F.cross_entropy(
                layer(features).float(), instance, ignore_index=-1, reduction="sum"
            )
            loss = loss + part_loss * errors / (seen * len(self.parts))
        return loss


def _rate(step: int, steps: int, recipe: Recipe) -> float:
    """Learning rate: a linear rise, then half a cosine down to zero."""
    rise = max(1, round(recipe.warmup * steps))
    if step < rise:
        return recipe.learning_rate * (step + 1) / rise
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


class _Run:
    """A training in progress: student, averaged network, optimiser, epochs done, history."""

    def __init__(self, arch: str, seed: int, recipe: Recipe, device: torch.device) -> None:
        self.arch, self.seed, self.recipe, self.device = arch, seed, recipe, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = _Student(ARCHITECTURES[arch]())
        student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.student = student.to(device)
        self.average = copy.deepcopy(self.student.network).requires_grad_(False)
        matrices = [p for p in self.student.parameters() if p.ndim > 1]
        vectors = [p for p in self.student.parameters() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": recipe.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
        )
        self.epoch, self.seconds, self.history = 0, 0.0, []

    def _settings(self) -> dict[str, Any]:
        return {"arch": self.arch, "seed": self.seed, **asdict(self.recipe)}

    def save(self, path: Path) -> None:
        state = {
            "settings": self._settings(),
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": self.history,
        }
        with replacing(path) as beside:
            torch.save(state, beside)

    def load(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:
            raise WeightsError(
                f"the checkpoint {path} cannot be read ({reason(error)}). "
                "Remove it to start afresh."
            ) from error
        if state.get("settings") != self._settings():
            raise WeightsError(
                f"the checkpoint {path} belongs to another training. "
                "Remove it, or choose another folder."
            )
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.history = state["history"]

    def train_epoch(self, scenes: SceneArrays, progress: Progress, task: TaskID) -> float:
        """One pass over the scenes; returns the mean loss."""
        started = time.monotonic()
        recipe, size = self.recipe, self.recipe.batch_size
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        order = torch.randperm(len(scenes), generator=generator)
        batches = len(scenes) // size
        self.student.train()
        total = 0.0
        for number in range(batches):
            rows = order[number * size : (number + 1) * size]
            step = self.epoch * batches + number
            total += self._step(scenes, rows, step, recipe.epochs * batches, generator)
            progress.advance(task)
        self.epoch += 1
        self.seconds += time.monotonic() - started
        return total / batches

    def _step(
        self, scenes: SceneArrays, rows: Tensor, step: int, steps: int, generator: torch.Generator
    ) -> float:
        recipe, device = self.recipe, self.device
        images = augmented(normalised(scenes.images[rows].to(device)), generator)
        targets = scenes.compatible[rows].to(device), scenes.parts[rows].to(device)
        half = recipe.precision == "bfloat16"
        explicit = _ExplicitAttention() if half and device.type == "cpu" else nullcontext()
        with torch.autocast(device.type, torch.bfloat16, enabled=half), explicit:
            loss = self.student(images, *targets, recipe.part_loss)
        for group in self.optimiser.param_groups:
            group["lr"] = _rate(step, steps, recipe)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), recipe.clip)
        self.optimiser.step()
        self._update_average(step)
        return float(loss.detach())

    def _update_average(self, step: int) -> None:
        keep = min(self.recipe.averaging, (step + 1) / (step + 10))
        pairs = zip(
            self.average.state_dict().values(),
            self.student.network.state_dict().values(),
            strict=True,
        )
        with torch.no_grad():
            for mean, value in pairs:
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - keep)
                else:
                    mean.copy_(value)


def train_birds(
    arch: str,
    out: Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    train_scenes: int | None = None,
    device: str = "cpu",
    cache: Path | None = None,
    console: Console | None = None,
) -> Path:
    """Train a bundled architecture on generated birds; returns the path of the weights.

    Writes ``<out>/<arch>.safetensors`` and its card ``<out>/<arch>.json``. A checkpoint after
    every epoch lets an interrupted run go on where it stopped when it is started again with the
    same arguments. The recipe is ``RECIPES[arch]``; ``epochs`` and ``train_scenes`` change it.
    ``cache`` is the folder of the drawn scenes (``<out>/scenes`` by default). The test scenes are
    used once, after the last epoch.

    Raises ModelError for an unknown architecture, InputError for a number that is too small,
    WeightsError for the checkpoint of another training, OutputError where nothing can be written.
    """
    recipe = _recipe(arch, epochs, train_scenes)
    out = Path(out)
    run = _Run(arch, seed, recipe, torch.device(device))
    checkpoint = out / f"{arch}.checkpoint.pt"
    if checkpoint.exists():
        run.load(checkpoint)
    with progress_bar(console) as progress:
        scenes = partial(
            scene_arrays, seed=seed, size=SIZE, cache=cache or out / "scenes", progress=progress
        )
        train = scenes("train", recipe.train_scenes)
        validation = scenes("validation", recipe.validation_scenes)
        batches = recipe.train_scenes // recipe.batch_size
        task = progress.add_task(arch, total=recipe.epochs * batches, completed=run.epoch * batches)
        while run.epoch < recipe.epochs:
            loss = run.train_epoch(train, progress, task)
            share = accuracy(run.average, validation)
            run.history.append({"epoch": run.epoch, "loss": loss, "validation": share})
            run.save(checkpoint)
            progress.console.print(
                f"{arch} epoch {run.epoch}/{recipe.epochs}: loss {loss:.3f}, "
                f"validation top-1 {share:.1%}, {run.seconds / 60:.1f} min"
            )
        test = scenes("test", recipe.test_scenes)
    return _write_result(run, test, out)


def _recipe(arch: str, epochs: int | None, train_scenes: int | None) -> Recipe:
    if arch not in RECIPES:
        raise ModelError(f"unknown architecture '{arch}': {did_you_mean(arch, RECIPES)}")
    recipe = RECIPES[arch]
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    if train_scenes is not None:
        recipe = replace(recipe, train_scenes=train_scenes)
    if recipe.epochs < 1 or recipe.train_scenes < recipe.batch_size:
        raise InputError(
            f"epochs is {recipe.epochs}, train_scenes {recipe.train_scenes}; "
            f"at least 1 and {recipe.batch_size} are needed"
        )
    return recipe


def _write_result(run: _Run, test: SceneArrays, out: Path) -> Path:
    weights = out / f"{run.arch}.safetensors"
    state = {name: value.cpu().contiguous() for name, value in run.average.state_dict().items()}
    with replacing(weights) as beside:
        beside.write_bytes(save(state))
    card = _card(run, accuracy(run.average, test), hashlib.sha256(weights.read_bytes()).hexdigest())
    with replacing(out / f"{run.arch}.json") as beside:
        beside.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return weights


def _card(run: _Run, share: float, digest: str) -> dict[str, Any]:
    """What one has to know of the weights: where they come from, how good they are."""
    recipe, usual = run.recipe, RECIPES[run.arch]
    command = f"omenn train birds --arch {run.arch} --seed {run.seed}"
    if recipe.epochs != usual.epochs:
        command += f" --epochs {recipe.epochs}"
    if recipe.train_scenes != usual.train_scenes:
        command += f" --train-scenes {recipe.train_scenes}"
    return {
        "name": run.arch,
        "parameters": sum(p.numel() for p in run.average.parameters()),
        "input": {"size": SIZE, "mean": MEAN, "std": STD},
        "data": {
            "generator": "omenn.data.birds",
            "seed": run.seed,
            "train": f"{recipe.train_scenes} scenes, about half of them miss parts",
            "validation": f"{recipe.validation_scenes} complete scenes, read after every epoch",
            "test": f"{recipe.test_scenes} complete scenes, read once at the end",
        },
        "recipe": asdict(recipe),
        "command": command,
        "result": {
            "validation_top1": run.history[-1]["validation"],
            "test_top1": share,
            "test_scenes": recipe.test_scenes,
            "test_interval_95": [round(bound, 4) for bound in wilson(share, recipe.test_scenes)],
        },
        "training": {
            "minutes": round(run.seconds / 60, 1),
            "device": run.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "sha256": digest,
    }
