"""What the experiments with trained networks share: networks, test scenes, arguments, caching.

Networks are the bundled ones, or those of ``--weights FOLDER``, where ``experiments.xdnn.twins``
leaves ``<architecture>-<seed>/<architecture>.safetensors``. A file of that folder stands for the
bundled network of the same architecture, so that twins are those of one training.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.command import Command, Job
from experiments.report import ROOT
from experiments.store import Result
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


class Trained(Command):
    """A command on trained networks. ``short``: scenes of the short form."""

    def __init__(self, name: str, doc: str | None, scenes: int, short: int) -> None:
        shared = ("threads", "device", "short", "fresh", "write", "work")
        super().__init__(f"xdnn.{name}", doc, *shared)
        self.counts = (scenes, short)
        self.least |= {"scenes": 2}
        self.add("--scenes", type=int, help=f"test scenes (default {scenes}, short form {short})")
        self.add("--weights", type=Path, help="folder of experiments.xdnn.twins")
        self.add("--seed", type=int, default=0, help="which training in that folder")
        self.choose("model", ORDER, None)

    def parse(self, words: Sequence[str] | None) -> argparse.Namespace:
        a = super().parse(words)
        if a.scenes is None:
            a.scenes = self.counts[a.short]
        if a.write and a.models:
            self.fail("--write publishes all networks: omit --models.")
        if a.weights is not None and not a.weights.is_dir():
            self.fail(f"--weights {a.weights}: there is no such folder.")
        return a

    def networks(self, a: argparse.Namespace) -> list[Network]:
        """The networks that are asked for and there, each X network beside its regular twin.

        With ``--short`` and no ``--models``: the first architecture that has an X network, or the
        first of all.
        """
        try:
            found = {name: loaded(name, a.weights, a.seed, a.device) for name in a.models or ORDER}
        except OmennError as error:
            self.fail(str(error))
        missing = [name for name, network in found.items() if network is None]
        there = [network for network in found.values() if network is not None]
        self._check_weights(a, there, missing)
        if not a.short or a.models:
            return there
        twins = next((pair for pair in PAIRS.items() if found[pair[1]]), ORDER[:2])
        return [network for network in there if network.name in twins]

    def _check_weights(
        self, a: argparse.Namespace, there: Sequence[Network], missing: Sequence[str]
    ) -> None:
        if not there or (missing and a.models):
            self.fail(
                f"no weights of {missing[0]}: it is not bundled, and --weights names no folder "
                f"with {missing[0]}-{a.seed}/{missing[0]}.safetensors."
            )
        if a.weights and not any((a.weights / f"{n.name}-{a.seed}").is_dir() for n in there):
            self.fail(
                f"--weights {a.weights} has no {there[0].name}-{a.seed}/, nor that of another."
            )
        if a.write and missing:
            self.fail(
                "--write publishes all networks, and there are no weights of "
                f"{', '.join(missing)}: train them with experiments.xdnn.twins and give their "
                "folder with --weights."
            )

    def each(
        self,
        a: argparse.Namespace,
        found: Sequence[Network],
        key: str,
        make: Callable[[Network], Result],
    ) -> dict[str, Result]:
        """Network → what was measured, those on disk included."""
        jobs = [Job(n.name, f"{n.name}-{n.digest}-{key}", lambda n=n: make(n)) for n in found]
        return dict(zip((n.name for n in found), self.results(a, jobs), strict=True))

    def made_by(self, a: argparse.Namespace) -> str:
        """The command that makes a published block again."""
        words = []
        if a.weights is not None:
            path = a.weights.resolve()
            words += [
                "--weights",
                str(path.relative_to(ROOT)) if ROOT in path.parents else "FOLDER",
            ]
        words += ["--seed", str(a.seed)] if a.seed else []
        return self.written(*words)


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


def origin(found: Sequence[Network], a: argparse.Namespace) -> str:
    """Which networks these are, in words."""
    where = "Bundled networks"
    if a.weights is not None:
        where = f"Networks of training seed {a.seed} (`{a.weights.name}`), else the bundled ones"
    lacking = [x for x in PAIRS.values() if x not in {n.name for n in found}]
    return where + (f"; without {', '.join(lacking)}" if lacking and not a.models else "")
