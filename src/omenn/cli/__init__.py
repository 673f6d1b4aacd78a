"""The command ``omenn``. Thin: it reads the command line, calls ``omenn.cli``, prints.

NOTE [late imports]
``omenn --help`` answers at once because nothing heavy is imported before a command runs: torch
alone takes more than a second.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from omenn.cli import bench_command, data_command, terminal, train_command
from omenn.cli.shared_options import (
    AsJson,
    At,
    Bias,
    BiasOfMethod,
    Classes,
    Contrast,
    Device,
    MethodName,
    Methods,
    Model,
    Out,
    OutOfComparison,
    Output,
    Post,
    Seed,
    Settings,
    SettingsOfMethods,
    Smooth,
    Target,
    Verbose,
    Weights,
)

EXIT_NOT_EXACT = 1
TYPER_INTERRUPTED = 130

app = typer.Typer(
    name="omenn",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train_command.app, name="train")
app.add_typer(data_command.app, name="data")
app.command()(bench_command.bench)


def _version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"omenn {importlib.metadata.version('omenn')}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """What did a trained network do with this input? One matrix that adds up to its answer.

    [bold]Start here:[/]  omenn demo
    """


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write.")
    ] = Path("omenn-demo"),
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Explain four generated birds with the bundled networks; works offline.

    Writes FOLDER/index.html, one page with everything in it, and every picture as PNG.

    Exit code 0 if everything is exact, 1 if not.

    [bold]Example:[/]  omenn demo --out birds
    """
    from omenn.cli import check_model, explain_results
    from omenn.cli import demonstration as birds

    with terminal.progress(birds.steps()) as tick:
        cases, certificates, files = birds.demo(out, device=device, tick=tick)
    if as_json:
        terminal.print_json(
            {
                "results": [explain_results.record(case) for case in cases],
                "certificates": {name: check_model.record(c) for name, c in certificates.items()},
                "files": [str(file) for file in files],
            }
        )
    else:
        words = [f"\n{name}: {found}" for name, found in certificates.items()]
        terminal.show(explain_results.table(cases), *words, f"\nOpen {files[-1]} in a browser.")
    _end(explain_results.kept(cases) and all(found.exact for found in certificates.values()))


@app.command()
def explain(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Pictures.")],
    model: Model,
    weights: Weights = None,
    target: Target = None,
    contrast: Contrast = None,
    method: MethodName = "omenn",
    settings: Settings = None,
    output: Output = None,
    at: At = None,
    bias: BiasOfMethod = None,
    post: Post = None,
    smooth: Smooth = None,
    out: Out = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Explain what a network sees in pictures.

    Pictures are prepared as the configuration of the model says.

    Models of timm and torchvision have random weights unless --weights names a
    file. Nothing is downloaded.

    Exit code 0 unless a sum that the method promises to be exact is not; then 1
    (all is written, too).

    [bold]Examples:[/]

      omenn explain cat.jpg -m torchvision:resnet18 --weights r18.pth -o cat.html

      omenn explain bird.png -m birds-resnet --target Larkolin -o bird.png

      omenn explain bird.png -m birds-vit --method gamma --set gamma=0.5 -o bird.html

      omenn explain *.jpg -m net.py:build --contrast runner-up -o explained/
    """
    from omenn.cli import explain_images, explain_results, method_options
    from omenn.models import sources

    if out is not None:
        explain_results.check_output(out, len(files), smooth)
    method_options.check_steps(post or ())
    with terminal.progress(len(files) + 2) as tick:
        tick(f"building {model}")
        source = sources.load(
            model,
            weights=weights,
            seed=seed,
            device=device,
            output=method_options.output_of(output),
        )
        # only now, as the file of the model may register a method
        chosen = method_options.options_of(method, settings or (), flags={"at": at, "bias": bias})
        request = explain_images.Request(target, contrast, method, chosen, tuple(post or ()))
        cases, written = explain_results.explain_and_write(
            files, source, request, out, smooth=smooth, device=device, tick=tick
        )
    if as_json:
        records = [explain_results.record(case) for case in cases]
        terminal.print_json({"results": records, "files": [str(file) for file in written]})
    else:
        terminal.show(explain_results.table(cases), *explain_results.remarks(cases, written))
    _end(explain_results.kept(cases))


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A picture.")],
    model: Model,
    methods: Methods = None,
    settings: SettingsOfMethods = None,
    weights: Weights = None,
    target: Target = None,
    contrast: Contrast = None,
    output: Output = None,
    classes: Classes = 5,
    smooth: Smooth = None,
    out: OutOfComparison = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Put the maps of several methods side by side, with what each cost.

    The page shows them for one answer, on one scale, and for the likeliest
    answers, method by method. A method that fails says why in its place.

    Exit code 0 unless a sum that a method promises to be exact is not; then 1.

    [bold]Examples:[/]

      omenn compare bird.png -m birds-vit -o compare.html

      omenn compare cat.jpg -m timm:resnet50 --methods omenn,gamma --set gamma.gamma=0.5
    """
    from omenn.cli import comparing, explain_images, method_options
    from omenn.models import sources

    if out is not None:
        comparing.check_output(out)
    with terminal.progress(1) as tick:
        tick(f"building {model}")
        source = sources.load(
            model,
            weights=weights,
            seed=seed,
            device=device,
            output=method_options.output_of(output),
        )
    names = comparing.names_of(methods)  # only now, as the file of the model may register one
    chosen = method_options.by_method(settings or (), names)
    request = explain_images.Request(target, contrast)
    with terminal.progress(comparing.steps(names, classes) + 1) as tick:
        found = comparing.compare_file(
            file, source, request, chosen, classes=classes, sigma=smooth, device=device, tick=tick
        )
        if out is not None:
            tick(f"writing {out}")
            comparing.write(out, found)
    if as_json:
        files = [] if out is None else [str(out)]
        terminal.print_json(comparing.record(found) | {"files": files})
    else:
        terminal.show(comparing.table(found), *comparing.remarks(found, out))
    _end(comparing.kept(found))


@app.command("methods")
def list_methods(as_json: AsJson = False, verbose: Verbose = False) -> None:
    """List the methods: what each promises of its sum, its options, what it needs.

    [bold]Example:[/]  omenn methods --json
    """
    from omenn.cli import method_list

    if as_json:
        terminal.print_json({"methods": method_list.records()})
    else:
        terminal.show(method_list.table(), f"\n{method_list.counted()}")


@app.command()
def certify(
    model: Model,
    file: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="A picture to run it on.")
    ] = None,
    weights: Weights = None,
    target: Target = None,
    output: Output = None,
    at: At = None,
    bias: Bias = "spatial",
    homogeneous: Annotated[
        bool, typer.Option("--homogeneous", help="Check F(αx) = α F(x) instead, for X-Gradient.")
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check that explanations of a model are exact, with the evidence. Exit code 0 only if so.

    It is 1 if they are not, 2 if the model cannot be checked.

    With --homogeneous: whether F(αx) = α F(x), by its operators and by numbers.
    What is not homogeneous is named by module.

    Without --input the model runs on its own example_inputs (and example_target) or on random
    numbers.

    [bold]Examples:[/]

      omenn certify -m timm:vit_base_patch16_224

      omenn certify -m net.py:build --input cat.jpg --json

      omenn certify --homogeneous -m net.py:build
    """
    from omenn.cli import check_model, method_options
    from omenn.models import sources

    if homogeneous:
        check_model.whole_model(
            {"--target": target, "--at": at, "--bias": None if bias == "spatial" else bias}
        )
    source = sources.load(
        model, weights=weights, seed=seed, device=device, output=method_options.output_of(output)
    )
    inputs, words = check_model.inputs_for(source, file, seed, device)
    if homogeneous:
        found = check_model.homogeneity(source, inputs)
    else:
        asked = check_model.target_for(source, target)
        found = check_model.exactness(source, inputs, asked, at=at, bias=bias)
    if as_json:
        terminal.print_json(check_model.record(found, source, words))
    else:
        terminal.show(check_model.table(found, source, words))
    _end(bool(found))


def _end(exact: bool) -> None:
    if not exact:
        raise typer.Exit(EXIT_NOT_EXACT)


def main(arguments: Sequence[str] | None = None, begun: Callable[[], object] = lambda: None) -> int:
    """Run the command; the exit code: 0, 1 (not exact), 2 (an error or Ctrl-C, one line).

    ``begun`` is called as soon as KeyboardInterrupt is caught here.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "-v" in words or "--verbose" in words
    try:
        begun()
        with warnings.catch_warnings():
            if not verbose:  # what libraries warn about is rarely for the user of a command
                warnings.simplefilter("ignore")
            code = app(words, prog_name="omenn", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return terminal.interrupted()
    except terminal.Interrupted:
        return terminal.interrupted(terminal.RESUMABLE)
    except Exception as error:
        return terminal.fail(error, verbose=verbose)
    if code == TYPER_INTERRUPTED:  # newer versions of typer turn Ctrl-C into this number
        return terminal.interrupted()
    return code if isinstance(code, int) else 0
