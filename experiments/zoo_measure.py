"""One row of the support matrix: what holds for one model, measured in a process of its own."""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import omenn
from experiments import timing
from experiments.zoo_entries import Entry
from experiments.zoo_models import cast, perturb
from experiments.zoo_watch import Watch
from omenn.engine.target import pick_output, select
from omenn.errors import OmennError, UnsupportedOperator
from omenn.explanation import leaves

EXACT = {"float64": 1e-9, "float32": 1e-5}
TYPES = {"float64": torch.float64, "float32": torch.float32}
ROUNDS = 3  # timed rounds after one of warm-up


def measure(entry: Entry, rounds: int = ROUNDS, seed: int = 0) -> dict[str, Any]:
    """The row of an entry. Its ``status``:

    ``exact``; ``not exact``; ``unsupported`` (``operator``, ``module``, ``reason``); ``error``
    (the explanation raised something else); ``unbuilt`` (the model itself cannot be made or run).
    """
    started = time.perf_counter()
    row: dict[str, Any] = {"group": entry.group, "family": entry.family, "name": entry.name}
    found = made(entry, seed)
    if isinstance(found, str):
        row |= {"status": "unbuilt", "reason": found}
    else:
        model, inputs = found
        row["parameters"] = sum(p.numel() for p in model.parameters())
        row["input"] = _shapes(inputs)
        for dtype in ("float32", "float64"):
            row[dtype] = _exactness(entry, model, inputs, dtype)
        row["status"] = _status(row)
        if row["status"] in ("exact", "not exact"):
            model, inputs = model.float(), cast(inputs, torch.float32)
            row["completed"] = completed(entry, model, inputs)
            row |= _cost(entry, model, inputs, rounds)
    row["took"] = round(time.perf_counter() - started, 2)
    return row


def made(entry: Entry, seed: int = 0) -> tuple[nn.Module, Any] | str:
    """(perturbed model, inputs) of the first build that runs; or why the last one does not."""
    why = "it has no builds"
    for build in entry.builds:
        try:
            torch.manual_seed(seed)
            model, inputs = build()
            perturb(model, seed)
            calibrate(model, inputs, seed)
            _ordinary(model, inputs)
        except Exception as error:  # another size may do
            why = _first_line(error)
            continue
        return model, inputs
    return why


def runs(model: nn.Module, inputs: Any) -> str:
    """Why the model does not run in this type (a kernel without float64, say); empty if it does."""
    try:
        _ordinary(model, inputs)
    except Exception as error:
        return _first_line(error)
    return ""


def calibrate(model: nn.Module, inputs: Any, seed: int = 0) -> None:
    """Sets the statistics of batch norms to about those of the inputs.

    With the constructor's statistics the signal dies out in deep networks, and with it the part of
    the output that depends on the input; a test on constants alone would prove little.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in norms if m.track_running_stats and m.running_var is not None]
    if not norms:
        return
    generator = torch.Generator().manual_seed(seed)
    momenta = [m.momentum for m in norms]
    try:
        for m in norms:
            m.train()
            m.momentum = 1.0
        _ordinary(model, _twice(inputs))
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.eval()
            m.momentum = momentum
    with torch.no_grad():
        for m in norms:
            mean, var = m.running_mean, m.running_var
            var.clamp_(min=1e-3)
            mean.add_(0.1 * torch.randn(mean.shape, generator=generator) * var.sqrt())
            var.mul_(0.5 + torch.rand(var.shape, generator=generator))


def _twice(inputs: Any) -> Any:
    """A batch with one more sample for each, so that every channel has a variance."""
    if isinstance(inputs, Tensor):
        return torch.cat([inputs, torch.randn_like(inputs)])
    return inputs  # graphs and texts have many nodes and tokens


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _ordinary(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = _arguments(inputs)
    with torch.no_grad():
        return model(*args, **kwargs)


def _shapes(inputs: Any) -> list[list[int]]:
    args, kwargs = _arguments(inputs)
    return [list(t.shape) for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:300]


# --- exactness --------------------------------------------------------------------------------


def _exactness(entry: Entry, model: nn.Module, inputs: Any, dtype: str) -> dict[str, Any]:
    """Residual, fidelity, shares, and where the constants without a place come from."""
    model, inputs = model.to(TYPES[dtype]), cast(inputs, TYPES[dtype])
    if why := runs(model, inputs):
        return {"status": "not run", "reason": why}
    options = entry.options
    try:
        with Watch() as watch:
            c = omenn.certify(model, inputs, **options)
    except OmennError as error:
        return {"status": "error", "reason": _first_line(error)}
    e = c.explanation
    if e is None:
        return _refused(model, inputs, options, c.violations[0])
    relative = float(c.relative.max())
    exact = c.exact and (relative <= EXACT[dtype] or e.tolerance > EXACT[dtype])
    found: dict[str, Any] = {
        "status": "exact" if exact else "not exact",
        "residual": relative,
        "of_magnitude": float((e.residual.abs() / e.magnitude.clamp_min(1e-300)).max()),
        "fidelity": c.fidelity,
        "tolerance": e.tolerance,
        "warnings": list(c.violations),
    }
    found |= _constants(watch, c)
    if dtype == "float64":
        with Watch() as other:
            _explain(entry, model, _elsewhere(inputs))()
        found["moving_constants"] = watch.differing(other)
    return found


COMPLETED = {"method": "rules", "gamma": 0.1}


def completed(entry: Entry, model: nn.Module, inputs: Any) -> dict[str, Any]:
    """The same residual of completed LRP-γ, and the share of Σ|C| that is kept; or why not."""
    try:
        e = omenn.explain(model, inputs, **entry.options, **COMPLETED)
    except OmennError as error:
        return {"reason": _first_line(error)}
    kept = sum(float(t.detach().abs().sum()) for t in leaves(e.bias))
    through = sum(float(t.detach().abs().sum()) for t in leaves(e.contribution))
    residual = float((e.residual.abs() / (1 + e.magnitude)).max())
    return {"residual": residual, "exact": e.exact, "kept": kept / max(kept + through, 1e-300)}


def _refused(model: nn.Module, inputs: Any, options: Any, words: str) -> dict[str, Any]:
    found = {"status": "unsupported", "reason": words.splitlines()[0]}
    try:
        omenn.explain(model, inputs, **options)
    except UnsupportedOperator as error:
        found |= {"operator": error.operator, "module": error.module}
    except OmennError:
        pass
    return found


def _constants(watch: Watch, c: omenn.Certificate) -> dict[str, Any]:
    """Shares of input and constants, what is unlocated, and which rules were used."""
    e = c.explanation
    assert e is not None
    through = sum(float(t.detach().abs().sum()) for t in leaves(e.contribution))
    constant = sum(float(t.detach().abs().sum()) for t in leaves(e.bias))
    return {
        "output": float(e.output.detach().abs().max()),
        "magnitude": float(e.magnitude.sum()),
        "input_share": through / max(through + constant, 1e-300),
        "bias_share": float(c.bias_share.abs().median()),
        "located": c.located,
        "unlocated": _reasons(c),
        "frozen_constants": list(c.frozen_constants),
        "rules": sorted(watch.rules),
        "spellings": sorted(watch.spellings),
    }


def _reasons(c: omenn.Certificate) -> list[dict[str, Any]]:
    """Why constants have no place: reason, share of Σ|constants|, the module with the most."""
    found: dict[str, list[tuple[float, str]]] = {}
    for module, shares in c.unlocated.items():
        for why, share in shares.items():
            found.setdefault(why, []).append((share, module))
    rows = [
        {"kind": why, "share": sum(s for s, _ in each), "module": max(each)[1]}
        for why, each in found.items()
    ]
    return sorted(rows, key=lambda r: -r["share"])


def _elsewhere(inputs: Any) -> Any:
    """The same inputs, slightly moved: constants must not notice."""
    if isinstance(inputs, Tensor):
        return inputs + 0.01 * torch.cos(inputs) if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        moved = {k: _elsewhere(v) for k, v in inputs.items()}
        if "input_ids" in inputs:
            moved["input_ids"] = inputs["input_ids"].roll(1, 1)  # the same tokens, elsewhere
        return moved
    return tuple(_elsewhere(v) for v in inputs) if isinstance(inputs, tuple) else inputs


def _status(row: dict[str, Any]) -> str:
    """The worst of both precisions; a precision in which the model itself does not run is out."""
    found = [row[d]["status"] for d in TYPES if row[d]["status"] != "not run"]
    for status in ("error", "unsupported", "not exact"):
        if status in found:
            return status
    return "exact" if found else "unbuilt"


# --- cost -------------------------------------------------------------------------------------


def _cost(entry: Entry, model: nn.Module, inputs: Any, rounds: int) -> dict[str, Any]:
    """Seconds and peak memory of an explanation beside a plain input gradient, in float32."""
    calls = {"gradient": _gradient(entry, model, inputs), "explain": _explain(entry, model, inputs)}
    if any(_fails(call) for call in calls.values()):
        return {}
    # One thread, and other work may share the machine: the processor's clock.
    seconds = timing.paired(calls, rounds, warm_up=0, clock=time.process_time)
    memory = {name: _peak(call) for name, call in calls.items()}
    ratios = timing.ratios(seconds, "explain", "gradient")
    cost = {"clock": "processor", "seconds": seconds, "ratio": statistics.median(ratios)}
    if all(memory.values()):
        cost |= {"memory": memory, "memory_ratio": memory["explain"] / memory["gradient"]}
    return cost


def _fails(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:
        return True
    return False


def _explain(entry: Entry, model: nn.Module, inputs: Any) -> Callable[[], Any]:
    return lambda: omenn.explain(model, inputs, **entry.options)


def _gradient(entry: Entry, model: nn.Module, inputs: Any) -> Callable[[], Any]:
    """A plain gradient by the floating-point inputs, or by the embedding of integer ones."""

    def run() -> None:
        points: list[Tensor] = []

        def leaf(t: Any) -> Any:
            if isinstance(t, Tensor) and t.is_floating_point():
                points.append(t.clone().requires_grad_())
                return points[-1]
            return t

        def embedded(module: nn.Module, given: Any, out: Tensor) -> Tensor | None:
            if points:  # the first lookup is that of the tokens
                return None
            points.append(out.detach().requires_grad_())
            return points[-1]

        args, kwargs = _arguments(inputs)
        args, kwargs = tuple(leaf(a) for a in args), {k: leaf(v) for k, v in kwargs.items()}
        tables = [] if points else [m for m in model.modules() if isinstance(m, nn.Embedding)]
        handles = [m.register_forward_hook(embedded) for m in tables]
        try:
            out = pick_output(model(*args, **kwargs), entry.options.get("output"))
            batch = _shapes(inputs)[0][0]
            f, _ = select(out, entry.options.get("target"), batch)
            torch.autograd.grad(f.sum(), points, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()

    return run


def _peak(call: Callable[[], Any]) -> float:
    """Peak memory of a call in MB above what was there, in a forked process (Linux), else 0."""
    if not Path("/proc/self/clear_refs").exists():
        return 0.0
    gc.collect()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps(timing.high_water(call, lambda: None)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    peak = float(text) if text else 0.0
    return peak if math.isfinite(peak) and peak > 0 else 0.0
