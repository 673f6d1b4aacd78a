"""Reproducible random weights that leave no layer of a fresh model trivial."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from omenn.check import whole

if TYPE_CHECKING:
    from torch import nn


def check_seed(seed: int) -> None:
    """Raises InputError for a seed that numpy and torch do not both accept.

    >>> check_seed(-1)
    Traceback (most recent call last):
    omenn.errors.InputError: seed must be an integer from 0 to 4294967295, but -1 was given.
    """
    whole("seed", seed, 0, 2**32 - 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` inside the block; restore the generators of torch, numpy and random after.

    Raises InputError for a seed that they do not accept.

    >>> import torch
    >>> before = torch.get_rng_state()
    >>> with seeded(1):
    ...     _ = torch.rand(3)
    >>> assert torch.equal(before, torch.get_rng_state())
    """
    import numpy as np
    import torch

    check_seed(seed)
    plain, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed CUDA
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(arrays)


def leave_no_layer_trivial(model: nn.Module) -> None:
    """Randomise, in place, whatever is constant in a fresh model: biases, norms, zeros.

    Zeros (and layer scales of 1e-6) become N(0, 0.1²), other constants c become c·N(1, 0.1²),
    running variances are drawn from [0.5, 1.5]. Uses the global generator (see ``seeded``).
    """
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and (parameter == parameter.flatten()[0]).all():
                noise = torch.randn_like(parameter) * 0.1
                constant = parameter.flatten()[0].item()
                parameter.copy_(noise if abs(constant) < 1e-3 else constant * (1 + noise))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer) * 0.1)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
