"""What every metric says of a bundled model on a few scenes, in double precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from golden.flat import Record
from omenn.bench.trial import Subject, Trial
from omenn.data.dataset_registry import open_data
from omenn.metrics.explainers import explainer
from omenn.metrics.metric_registry import metrics
from omenn.modalities.image.pictures import Pictures
from omenn.modalities.image.preprocessing import Preprocessing
from omenn.models.sources import load

OPTIONS: dict[str, dict[str, Any]] = {
    "gae": {"steps": 3},
    "insertion-deletion": {"step": 512},
    "pixel-flipping": {"step": 512},
    "pixel-deletion": {"points": 9},
    "srg": {"patch": 16},
    "faithfulness-correlation": {"runs": 12},
    "faithfulness-estimate": {"step": 512},
    "sensitivity-n": {"runs": 6, "sizes": [9, 500]},
    "monotonicity-correlation": {"step": 512, "samples": 2},
    "sensitivity": {"samples": 2},
    "local-lipschitz": {"samples": 2},
    "mprt": {"order": "independent"},
    "smooth-mprt": {"samples": 2, "similarity": "ssim"},
    "grid-pointing-game": {"confidence": 0.0},
    "idsds": {"pictures": 4, "epochs": 1, "batch": 4},
}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "gae published": ("gae", {"steps": 2, "published": True}),
    "funnybirds published": ("funnybirds", {"published": True, "positive": True}),
    "keep-remove published": ("keep-remove", {"published": True}),
    "cell-deletion blur": ("cell-deletion", {"fill": "blur", "published": True}),
    "cell-deletion random": ("cell-deletion", {"fill": "random"}),
    "faithfulness-correlation values": (
        "faithfulness-correlation",
        {"runs": 12, "features": "values", "fill": "mean", "outcome": "probability"},
    ),
}

SCENES = {"gae": 16}  # of which it makes mosaics of four


class Doubled(Preprocessing):
    """Pictures in double precision, whose numbers are those of any processor."""

    def __call__(self, picture: Any) -> Tensor:
        return super().__call__(picture).double()


@cache
def trial(scenes: int) -> Trial:
    """The exact method on the first test scenes."""
    source = load("birds-convnet")
    own = source.preprocessing
    fields = {name: value for name, value in vars(own).items() if not name.startswith("_")}
    preprocessing = Doubled(**fields)
    data = open_data("birds", "test", scenes, side=own.size[0])
    subject = Subject(source.model.double(), data, Pictures(preprocessing), chunk=4)
    return Trial(subject, _maker)


def _maker(model: nn.Module) -> Any:
    return explainer(model, "omenn")


def judged(name: str, options: dict[str, Any]) -> Record:
    """Every measure with its interval and its value for each scene, and what was counted."""
    found = trial(SCENES.get(name, 4)).judge(metrics()[name], **options)
    record: Record = {"counted": dict(found.counted)}
    for measure, value in found.measures.items():
        for key, entry in asdict(value).items():
            if key == "values" and entry is not None:
                entry = torch.tensor(entry, dtype=torch.float64)
            record[f"{measure}/{key}"] = entry
    return record


PARTS: dict[str, Callable[[], Record]] = {
    **{f"metric {name}": partial(judged, name, OPTIONS.get(name, {})) for name in metrics()},
    **{f"metric {name}": partial(judged, base, given) for name, (base, given) in MORE.items()},
}
