"""What the experiments with trained networks share: networks, test scenes, arguments, caching.

Networks are the bundled ones, or those of ``--weights FOLDER``, where ``experiments.xdnn.twins``
leaves ``<architecture>-<seed>/<architecture>.safetensors``. A file of that folder stands for the
bundled network of the same architecture, so that twins are those of one training.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import omenn
from experiments import timing
from experiments.report import ROOT
from omenn.data.birds.arrays import scene_arrays
from omenn.errors import OmennError
from omenn.models import bundled
from omenn.models.architectures import ARCHITECTURES
from omenn.models.checkpoints import load_weights

PAIRS = {
    "birds-resnet": "birds-xresnet",
    "birds-convnet": "birds-xconvnet",
    "birds-vit": "birds-xvit",
}
"""Architecture → its X twin, which has no additive terms."""
ORDER = tuple(name for pair in PAIRS.items() for name in pair)
DOCUMENT = ROOT / "docs" / "xdnn.md"


@dataclass(frozen=True)
class Network:
    """A trained network; ``digest`` of its weights."""

    name: str
    model: nn.Module
    digest: str

    @property
    def x(self) -> bool:
        return self.name in PAIRS.values()


@dataclass(frozen=True)
class Scenes:
    """Test scenes as the networks take them, (N, 3, S, S), and their classes (N,)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def batches(self, size: int) -> Iterable[tuple[Tensor, Tensor]]:
        return zip(self.x.split(size), self.y.split(size), strict=True)


def arguments(command: str, description: str, scenes: int) -> argparse.ArgumentParser:
    """What every experiment can be told."""
    parser = argparse.ArgumentParser(prog=command, description=description)
    parser.add_argument("--scenes", type=int, help=f"test scenes (default {scenes})")
    parser.add_argument("--models", nargs="+", help=f"of {', '.join(ORDER)} (default: all found)")
    parser.add_argument("--weights", type=Path, help="folder of experiments.xdnn.twins")
    parser.add_argument("--seed", type=int, default=0, help="which training in that folder")
    parser.add_argument("--short", action="store_true", help="a taste, in about a minute")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fresh", action="store_true", help="measure all again")
    parser.add_argument("--write", action="store_true", help="update docs/xdnn.md and its picture")
    work = ROOT / "runs" / "xdnn" / command.rpartition(".")[2]
    parser.add_argument("--work", type=Path, default=work, help="results")
    return parser


def parsed(
    parser: argparse.ArgumentParser, words: Sequence[str] | None, scenes: int, short: int
) -> argparse.Namespace:
    """The arguments; one line and exit code 2 for those that cannot be used."""
    a = parser.parse_args(words)
    if a.scenes is None:
        a.scenes = short if a.short else scenes
    for name in a.models or ():
        if name not in ORDER:
            timing.fail(parser.prog, f"no model {name!r}. Choose from: {', '.join(ORDER)}.")
    if a.scenes < 2 or a.threads < 1:
        timing.fail(parser.prog, "--scenes is at least 2 and --threads at least 1.")
    if a.write and a.short:
        timing.fail(parser.prog, "--write publishes the full form: leave --short out.")
    if a.write and a.models:
        timing.fail(parser.prog, "--write publishes all networks: leave --models out.")
    if a.weights is not None and not a.weights.is_dir():
        timing.fail(parser.prog, f"--weights {a.weights}: there is no such folder.")
    if a.device.startswith("cuda") and not torch.cuda.is_available():
        timing.fail(parser.prog, f"--device {a.device}: this torch sees no GPU.")
    torch.set_num_threads(a.threads)
    return a


def networks(command: str, a: argparse.Namespace) -> list[Network]:
    """The networks that are asked for and there, each X network beside its regular twin.

    With ``--short`` and no ``--models``: the first architecture that has an X network, or the first
    of all.
    """
    try:
        found = {name: loaded(name, a.weights, a.seed, a.device) for name in a.models or ORDER}
    except OmennError as error:
        timing.fail(command, str(error))
    missing = [name for name, network in found.items() if network is None]
    there = [network for network in found.values() if network is not None]
    if not there or (missing and a.models):
        timing.fail(
            command,
            f"no weights of {missing[0]}: it is not bundled, and --weights names no folder with "
            f"{missing[0]}-{a.seed}/{missing[0]}.safetensors.",
        )
    if a.weights and not any((a.weights / f"{n.name}-{a.seed}").is_dir() for n in there):
        timing.fail(
            command, f"--weights {a.weights} has no {there[0].name}-{a.seed}/, nor that of another."
        )
    if a.write and missing:
        timing.fail(
            command,
            f"--write publishes all networks, and there are no weights of {', '.join(missing)}: "
            "train them with experiments.xdnn.twins and give their folder with --weights.",
        )
    if not a.short or a.models:
        return there
    twins = next((pair for pair in PAIRS.items() if found[pair[1]]), ORDER[:2])
    return [network for network in there if network.name in twins]


def written_by(command: str, a: argparse.Namespace) -> str:
    """The command that makes a published block again."""
    words = [command]
    if a.weights is not None:
        inside = a.weights.resolve().is_relative_to(ROOT)
        words += ["--weights", str(a.weights.resolve().relative_to(ROOT)) if inside else "FOLDER"]
    words += ["--seed", str(a.seed)] if a.seed else []
    return f"Written by `python -m {' '.join(words)} --write`"


def loaded(name: str, weights: Path | None, seed: int, device: str = "cpu") -> Network | None:
    """A network of the folder or a bundled one, or None. Raises WeightsError for a bad file."""
    path = weights and weights / f"{name}-{seed}" / f"{name}.safetensors"
    if path and path.exists():
        if name not in ARCHITECTURES:
            return None
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = ARCHITECTURES[name]()
        load_weights(model, path)
    elif name in bundled.names():
        model = bundled.load(name)
    else:
        return None
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.contiguous().numpy().tobytes())
    return Network(name, model.eval().to(device).requires_grad_(False), digest.hexdigest()[:12])


def scenes(split: str, count: int, device: str, cache: Path | None) -> Scenes:
    """The first scenes of a split of the generated birds."""
    arrays = scene_arrays(split, count, size=bundled.SIZE, cache=cache)  # type: ignore[arg-type]
    x = (arrays.images.float() / 255 - bundled.MEAN[0]) / bundled.STD[0]
    return Scenes(x.contiguous().to(device), arrays.labels.to(device))


def version(*parts: Callable[..., Any] | ModuleType) -> str:
    """A digest of the source of the methods and of the given functions and modules.

    That of the engine is looked after by ``timing.Results``.
    """
    digest = hashlib.sha256()
    for path in sorted((Path(omenn.__file__).parent / "methods").rglob("*.py")):
        digest.update(path.read_bytes())
    for part in parts:
        digest.update(inspect.getsource(part).encode())
    return digest.hexdigest()[:12]


def origin(found: Sequence[Network], a: argparse.Namespace) -> str:
    """Which networks these are, in words."""
    where = "Bundled networks"
    if a.weights is not None:
        where = f"Networks of training seed {a.seed} (`{a.weights.name}`), else the bundled ones"
    lacking = [x for x in PAIRS.values() if x not in {n.name for n in found}]
    return where + (f"; without {', '.join(lacking)}" if lacking and not a.models else "")
