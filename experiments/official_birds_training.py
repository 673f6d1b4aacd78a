"""The training behind ``experiments.official_birds``: seeded, resumable after every epoch.

The loss is the cross-entropy averaged over the classes that agree with the visible parts, plus,
for every visible part, the cross-entropy of its instance under a linear layer that is thrown
away at the end (it shortens the training several times). The weights kept are an exponential
moving average over the steps.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from experiments.official_birds import (
    MEAN,
    SIZE,
    STD,
    ResNet,
    ViT,
    build,
    load,
    preprocessing,
    read_card,
)
from experiments.official_birds_data import Renders, held_out, read
from omenn.data.funnybirds import FunnyBirds
from omenn.errors import WeightsError, reason
from omenn.files.atomic import replacing
from omenn.models.architectures import Classifier
from omenn.models.cards import wilson
from omenn.progress import progress_bar


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome beside seed, pictures and the rounding of the machine."""

    size: int
    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int = 64
    warmup: float = 0.08
    averaging: float = 0.998
    part_loss: float = 3.0
    clip: float = 1.0


RECIPES = {
    "resnet": Recipe(SIZE["resnet"], epochs=30, learning_rate=2e-3, weight_decay=0.02),
    "vit": Recipe(SIZE["vit"], epochs=12, learning_rate=1e-3, weight_decay=0.05),
    "convnet": Recipe(SIZE["convnet"], epochs=30, learning_rate=1e-3, weight_decay=0.02),
}


def normalised(images: Tensor) -> Tensor:
    """Pixels 0..255 (B, 3, S, S) as the networks read them: (v / 255 - MEAN) / STD."""
    return (images.float() / 255 - MEAN[0]) / STD[0]


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored, turned by up to 4 degrees, scaled by up to a tenth, shifted by up to a twentieth
    of the side, and varied a little in contrast and tint; (B, 3, S, S) in [-1, 1] → the same
    shape. Stronger changes slowed the training: the camera of the scenes varies enough.
    """
    batch = len(images)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    angle, zoom = between(-math.pi / 45, math.pi / 45), between(-0.1, 0.1).exp()
    mirror = torch.where(between(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    linear = torch.stack([cos * mirror, -sin, sin * mirror, cos], 1).view(batch, 2, 2)
    shift = between(-0.1, 0.1, 2, 1)  # the side has length 2
    grid = F.affine_grid(torch.cat([linear, shift], 2), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    tint = between(-0.05, 0.05, 1, 1, 1) + between(-0.03, 0.03, 3, 1, 1)
    changed = moved * between(0.9, 1.1, 1, 1, 1) + tint
    return changed.contiguous(memory_format=torch.channels_last)


class _ExplicitAttention(TorchFunctionMode):
    """Attention as two products: in bfloat16 on a CPU far faster than the fused kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = args
            scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
            return scores.softmax(-1).to(value.dtype) @ value
        return func(*args, **(kwargs or {}))


class _Student(nn.Module):
    """The network with its part layers, which exist in training only."""

    def __init__(self, network: Classifier, instances: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.parts = nn.ModuleList(nn.Linear(network.head.in_features, n) for n in instances)

    def forward(self, images: Tensor, compatible: Tensor, parts: Tensor, weight: float) -> Tensor:
        features = self.network.features(images)
        loss = F.cross_entropy(self.network.head(features).float(), compatible)
        for layer, instance in zip(self.parts, parts.unbind(1), strict=True):
            errors = F.cross_entropy(
                layer(features).float(), instance, ignore_index=-1, reduction="sum"
            )
            seen = (instance >= 0).sum().clamp(min=1)
            loss = loss + weight * errors / (seen * len(self.parts))
        return loss


def accuracy(network: nn.Module, images: Tensor, labels: Tensor, batch: int = 100) -> float:
    """Share of pictures (N, 3, S, S; 0..255) whose largest logit is their class; float32."""
    network.eval()
    with torch.no_grad():
        logits = torch.cat([network(normalised(chunk)) for chunk in images.split(batch)])
    return float((logits.argmax(1) == labels).float().mean())


class _Run:
    """A training in progress: student, averaged network, optimiser, history."""

    def __init__(
        self,
        arch: str,
        seed: int,
        recipe: Recipe,
        data: Renders,
        held: int,
        stem: Path | None = None,
    ) -> None:
        self.arch, self.recipe, self.seed = arch, recipe, seed
        self.settings = {"arch": arch, "seed": seed, "data": data.digest, "validation": held}
        self.settings |= asdict(recipe)
        half = _first_half(stem, data.digest, held) if stem else None
        if stem:
            self.settings["stem"] = hashlib.sha256(stem.read_bytes()).hexdigest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build(arch, recipe.size, data.compatible.shape[1])
            if half and isinstance(network, ViT):
                network.begin_with(half)
            student = _Student(network, data.instances)
        self.student = student.to(memory_format=torch.channels_last)  # pyright: ignore
        self.average = copy.deepcopy(network).requires_grad_(False)
        decayed = [p for p in student.parameters() if p.ndim > 1]
        others = [p for p in student.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate)
        self.seconds, self.cpu_seconds = 0.0, 0.0
        self.history: list[dict[str, float]] = []

    def save(self, path: Path) -> None:
        state = {
            "settings": self.settings,
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "seconds": [self.seconds, self.cpu_seconds],
            "history": self.history,
        }
        with replacing(path) as beside:
            torch.save(state, beside)

    def resume(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            settings = state["settings"]
        except Exception as error:  # torch raises almost anything for a damaged archive
            raise WeightsError(
                f"the checkpoint {path} cannot be read ({reason(error)}). "
                "Remove it to start afresh."
            ) from error
        if settings != self.settings:
            names = {**self.settings, **settings}
            differing = [k for k in names if settings.get(k) != self.settings.get(k)]
            raise WeightsError(
                f"the checkpoint {path} belongs to another training, which differs in "
                f"{', '.join(differing)}. Remove it, or choose another --out."
            )
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        (self.seconds, self.cpu_seconds), self.history = state["seconds"], state["history"]

    def train_epoch(self, data: Renders) -> float:
        """One pass over the pictures; returns the mean loss."""
        started, cpu = time.monotonic(), time.process_time()
        epoch, size = len(self.history), self.recipe.batch_size
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        chunks = torch.randperm(len(data), generator=generator).split(size)
        if len(chunks) > 1 and len(chunks[-1]) < size:
            chunks = chunks[:-1]
        self.student.train()
        total = 0.0
        for number, rows in enumerate(chunks):
            done = (epoch * len(chunks) + number) / (self.recipe.epochs * len(chunks))
            total += self._step(data[rows], done, generator)
            self._update_average(epoch * len(chunks) + number)
        self.seconds += time.monotonic() - started
        self.cpu_seconds += time.process_time() - cpu
        return total / len(chunks)

    def _step(self, batch: Renders, done: float, generator: torch.Generator) -> float:
        recipe = self.recipe
        with torch.no_grad():
            images = varied(normalised(batch.images), generator)
        with torch.autocast("cpu", torch.bfloat16), _ExplicitAttention():
            loss = self.student(images, batch.compatible, batch.parts, recipe.part_loss)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(done, recipe.warmup)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), recipe.clip)
        self.optimiser.step()
        return float(loss.detach())

    def _update_average(self, step: int) -> None:
        keep = min(self.recipe.averaging, (step + 1) / (step + 10))
        values = self.student.network.state_dict().values()
        with torch.no_grad():
            for mean, value in zip(self.average.state_dict().values(), values, strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - keep)
                else:
                    mean.copy_(value)


def _schedule(done: float, warmup: float) -> float:
    """Share of the learning rate: a linear rise, then half a cosine down to zero."""
    if done < warmup:
        return done / warmup + 1e-3
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def _first_half(weights: Path, digest: str, held: int) -> ResNet:
    """A trained residual network which has not seen the pictures held out here."""
    data = read_card(weights)["data"]
    network, _ = load(weights, "resnet")
    if (data["digest"], data["held_out"]) != (digest, _held_out(held)):
        raise WeightsError(
            f"'{weights}' was trained on pictures that are held out here: {data['held_out']} of "
            f"{data['digest']}, here {_held_out(held)} of {digest}. "
            "Train it with the same --zip and --validation."
        )
    assert isinstance(network, ResNet)
    return network


def _held_out(count: int) -> str:
    return f"{count} complete birds, as many of each class"


def train(
    pictures: Path,
    arch: str,
    out: Path,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    validation: int = 1000,
    minutes: float = math.inf,
    stem: Path | None = None,
    test: Path | None = None,
) -> Path | None:
    """Train ``arch`` on the zip ``pictures``; the path of the weights, None if minutes ran out.

    Writes ``<out>/<arch>-<size>.safetensors`` and its card ``.json``; a checkpoint after every
    epoch. ``stem``: weights of the residual network that a ViT's stem begins with. ``test`` names a
    folder in FunnyBirds' layout, read once after the last epoch.

    Raises InputError for pictures or numbers that cannot be used, WeightsError for the checkpoint
    of another training, OutputError where nothing can be written.
    """
    recipe = recipe or RECIPES[arch]
    testing = FunnyBirds(test) if test else None
    target = out / f"{arch}-{recipe.size}"
    with progress_bar() as progress:
        renders = read(pictures, recipe.size, out / "cache", progress)
    training, held = (renders[rows] for rows in held_out(renders, validation))
    run = _Run(arch, seed, recipe, renders, validation, stem)
    del renders
    checkpoint = target.with_suffix(".checkpoint.pt")
    if checkpoint.exists():
        run.resume(checkpoint)
    started = time.monotonic()
    while len(run.history) < recipe.epochs:
        if time.monotonic() - started > 60 * minutes:
            print(f"{minutes:g} minutes are over; the same command goes on", flush=True)
            return None
        loss = run.train_epoch(training)
        share = accuracy(run.average, held.images, held.labels)
        run.history.append({"loss": round(loss, 4), "validation": share})
        run.save(checkpoint)
        print(
            f"{target.name} epoch {len(run.history)}/{recipe.epochs}: loss {loss:.3f}, "
            f"validation top-1 {share:.1%}, {run.seconds / 60:.1f} min "
            f"({run.cpu_seconds / 60:.1f} of one core)",
            flush=True,
        )
    return _write(run, target, len(training), testing)


def _on_folder(run: _Run, data: FunnyBirds) -> dict[str, Any]:
    """How many pictures of a FunnyBirds folder the averaged network gets right."""
    prepare = preprocessing(run.recipe.size, "the training")
    network = run.average.eval()
    with torch.no_grad():
        right = sum(
            int(network(prepare(data.image(index))).argmax()) == data.label(index)
            for index in range(len(data))
        )
    return _figure(right / len(data), len(data))


def _figure(share: float, count: int) -> dict[str, Any]:
    low, high = wilson(share, count)
    return {"top1": share, "pictures": count, "interval_95": [round(low, 4), round(high, 4)]}


def _write(run: _Run, target: Path, training: int, testing: FunnyBirds | None) -> Path:
    weights = target.with_suffix(".safetensors")
    content = save({name: value.contiguous() for name, value in run.average.state_dict().items()})
    card = _card(run, training, hashlib.sha256(content).hexdigest())
    if testing is not None:
        card["official_test"] = _on_folder(run, testing)
        print(f"{target.name} official test pictures: {card['official_test']}", flush=True)
    with replacing(weights) as beside:
        beside.write_bytes(content)
    with replacing(target.with_suffix(".json")) as beside:
        beside.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return weights


def _card(run: _Run, training: int, digest: str) -> dict[str, Any]:
    """What one has to know of the weights: where they come from, how good they are."""
    held = run.settings["validation"]
    return {
        "arch": run.arch,
        "classes": run.average.head.out_features,
        "parameters": sum(p.numel() for p in run.average.parameters()),
        "input": {"size": run.recipe.size, "mean": MEAN, "std": STD, "resize": "bilinear"},
        "data": {
            "pictures": "FunnyBirds' official renders, about half of them miss parts",
            "digest": run.settings["data"],
            "training": training,
            "held_out": _held_out(held),
        },
        "recipe": asdict(run.recipe) | {"seed": run.seed},
        "stem": _beginning(run),
        "validation": _figure(run.history[-1]["validation"], held),
        "history": run.history,
        "training": {
            "minutes": round(run.seconds / 60, 1),
            "cpu_minutes": round(run.cpu_seconds / 60, 1),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "sha256": digest,
    }


def _beginning(run: _Run) -> str:
    if "stem" not in run.settings:
        return "drawn at random"
    half = "stem and first two stages of the resnet trained on the same pictures"
    return f"{half}, sha256 {run.settings['stem']}; then trained with all else"
