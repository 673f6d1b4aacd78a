"""The demonstration: four birds and the bundled networks, or four photographs; one page."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omenn.cli import check_model, explain_results
from omenn.cli.explain_images import Request, explain_tensor
from omenn.cli.terminal import Answer
from omenn.data import birds
from omenn.data.photographs import PHOTOGRAPHS
from omenn.files.atomic import check_writable, write_files
from omenn.models import sources
from omenn.models.sources import Source
from omenn.viz.figure import figure_png
from omenn.viz.heatmaps import png
from omenn.viz.page import Report, page
from omenn.viz.panels import Case

if TYPE_CHECKING:
    from torch import Tensor

    from omenn import Certificate

NETWORKS = ("birds-resnet", "birds-vit", "birds-convnet")
REAL = ("efficientnet-lite0",)
SCENES = (3, 8, 24, 33)
"""Which scenes of the test split are shown; no network was trained on one of this split."""
SIGMA = 1.5
PICTURE_SIDE = 512


def demo(
    out: Path,
    *,
    real: bool = False,
    device: str = "cpu",
    tick: Callable[[str], None] = lambda step: None,
) -> Answer:
    """Explain the birds with three bundled networks and write the page with its pictures.

    ``real``: photographs instead, with a network that was trained on ImageNet. ``tick`` is called
    with a description before each of the ``steps()`` steps.

    Raises:
        OutputError: ``out`` cannot be written.
        MissingExtra: ``real`` needs packages that are not installed.
    """
    import torch

    import omenn

    check_writable(out / "index.html")
    cases: list[Case] = []
    certificates: dict[str, Certificate] = {}
    for name in REAL if real else NETWORKS:
        source = sources.load(name, device=device)
        inputs: list[Tensor] = []
        for title, tensor, truth in photographs(source) if real else scenes(source):
            tick(f"{name}: {title.lower()}")
            inputs.append(tensor.to(device))
            request = Request(readable=True)
            cases.append(
                explain_tensor(title, inputs[-1], source, request, rival=True, truth=truth)
            )
        tick(f"{name}: certificate")
        certificates[name] = omenn.certify(source.model, torch.cat(inputs))
    if not real:
        cases.sort(key=lambda case: case.name)  # stable: the networks keep their order
    tick("pictures and page")
    files = {out / "pictures" / name: png for name, png in pictures(cases).items()}
    words = real_report if real else report
    files[out / "index.html"] = page(words(cases, certificates, out)).encode()
    write_files(files)
    return _answer(cases, certificates, list(files))


def _answer(
    cases: Sequence[Case], certificates: Mapping[str, Certificate], files: Sequence[Path]
) -> Answer:
    record = {
        "results": [explain_results.record(case) for case in cases],
        "certificates": {name: check_model.record(c) for name, c in certificates.items()},
        "files": [str(file) for file in files],
    }
    lines = [f"\n{name}: {found}" for name, found in certificates.items()]
    shown = [explain_results.table(cases), *lines, f"\nOpen {files[-1]} in a browser."]
    good = explain_results.kept(cases) and all(found.exact for found in certificates.values())
    return Answer(record, shown, good)


def steps(real: bool = False) -> int:
    """How often ``demo`` calls ``tick``."""
    return (len(REAL) * (len(PHOTOGRAPHS) + 1) if real else len(NETWORKS) * (len(SCENES) + 1)) + 1


def scenes(source: Source) -> Iterator[tuple[str, Tensor, str]]:
    """Title, preprocessed picture (1, 3, H, W) and right answer of the birds that are shown."""
    for count, index in enumerate(SCENES, 1):
        scene = birds.sample_scene(index, "test")
        picture = birds.render(scene, source.modality.size[0])
        name = source.class_name(scene.class_index)
        yield f"Bird {count}", source.modality.from_user(picture), name


def photographs(source: Source) -> Iterator[tuple[str, Tensor, None]]:
    """Title and preprocessed picture of the photographs that are shown."""
    for one in PHOTOGRAPHS:
        yield one.title, source.preprocessing(one.picture()), None


def report(cases: Sequence[Case], certificates: Mapping[str, Certificate], out: Path) -> Report:
    """The words around the birds."""
    import omenn

    names = ", ".join(certificates)
    return Report(
        title="What small networks saw in four birds",
        introduction=(
            f"Four invented birds, and the networks {names}, which were trained "
            "to tell fifty species apart. For every answer there are two maps whose entries add up "
            "to the number that decided: one to look at, one of the network's own weights."
        ),
        cases=cases,
        certificates=[(name, found.exact, str(found)) for name, found in certificates.items()],
        sigma=SIGMA,
        footer=f"omenn {omenn.__version__} · omenn demo --out {shlex.quote(str(out))}",
    )


def real_report(
    cases: Sequence[Case], certificates: Mapping[str, Certificate], out: Path
) -> Report:
    """The words around the photographs."""
    names = ", ".join(certificates)
    credit = "; ".join(f"{one.title}: {one.credit}" for one in PHOTOGRAPHS)
    words = report(cases, certificates, out)
    return replace(
        words,
        title="What a trained network saw in four photographs",
        introduction=(
            f"Four photographs, and {names}, which was trained on ImageNet to tell a thousand "
            "things apart. For every answer there are two maps whose entries add up to the "
            "number that decided: one to look at, one of the network's own weights."
        ),
        footer=f"{words.footer.replace('omenn demo', 'omenn demo --real')} · {credit}",
    )


def pictures(cases: Sequence[Case]) -> dict[str, bytes]:
    """Every panel as a PNG of its own, and one figure a case; file name to content."""
    files: dict[str, bytes] = {}
    for case in cases:
        stem = f"{case.name.lower().replace(' ', '-')}-{case.model}"
        files[f"{stem}.png"] = figure_png(
            case, sigma=explain_results.figure_sigma(case, SIGMA, None)
        )
        for panel in case.views(SIGMA):
            pixels = panel.exact.pixels
            enlarge = max(1, PICTURE_SIDE // pixels.shape[0])
            files[f"{stem}-{panel.key}.png"] = png(pixels, enlarge=enlarge)
    return files
