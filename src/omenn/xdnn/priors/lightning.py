"""A prior on attributions for modules of Lightning: one line in front of a finished one.

>>> import torch
>>> from omenn.xdnn import AttributionPrior
>>> def example() -> type:
...     import lightning
...
...     class Net(lightning.LightningModule):
...         def __init__(self) -> None:
...             super().__init__()
...             self.layer = torch.nn.Linear(4, 3)
...
...         def forward(self, x):
...             return self.layer(x)
...
...         def training_step(self, batch, index):
...             return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
...
...     class Sparse(PriorModule, Net):
...         attribution_prior = AttributionPrior("sparsity", 0.1)
...
...     return Sparse
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from omenn.check import quoted
from omenn.errors import InputError, MissingExtra, ModelError
from omenn.xdnn.priors.prior_loss import AttributionPrior

if TYPE_CHECKING:  # it is put before a LightningModule, and needs no package itself
    from lightning.pytorch import LightningModule as _Base
else:
    _Base = object


class PriorModule(_Base):
    """Adds a prior on attributions to the loss of the LightningModule behind it.

    ``class Sparse(PriorModule, Net): attribution_prior = AttributionPrior("sparsity", 0.1)`` is
    Net with the prior. Its training step is Net's, plus weight · prior for the same batch; both
    parts are logged, as ``task_loss`` and ``attribution_prior``. Validation and all else are Net's.
    The state of the prior's random numbers is kept in checkpoints. Each module has its own copy.

    Attributes: ``attribution_prior``, of the class or set on the module.

    Raises:
        ModelError: no attribution_prior, not before a LightningModule, manual optimisation, or a
            training step without a loss.
        InputError: a batch that is no (x, y): see :meth:`prior_arguments`.
        MissingExtra: Lightning is not installed.
    """

    attribution_prior: AttributionPrior

    def prior_arguments(self, batch: Any) -> tuple[Any, Any, Mapping[str, Any]]:
        """(x, y, context) of the prior in a batch, to be overridden where it is another.

        A batch is (x, y) or (x, y, context), context a dictionary (``{"mask": …}``). Labels of
        real numbers are no indices of outputs, so with them y is None.
        """
        pair = isinstance(batch, (tuple, list)) and len(batch) in (2, 3)
        if not pair or (len(batch) == 3 and not isinstance(batch[2], Mapping)):
            kind = type(batch).__name__
            kind += f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise InputError(
                f"the batch is a {kind}; (x, y) or (x, y, {{'mask': …}}) was expected.",
                argument="batch",
                got=kind,
                expected="(x, y) or (x, y, {'mask': …})",
                remedy="Override prior_arguments(self, batch), which returns x, y and a "
                "dictionary.",
            )
        x, y = batch[:2]
        real = isinstance(y, Tensor) and y.is_floating_point()
        return x, None if real else y, batch[2] if len(batch) == 3 else {}

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """The step of the module behind, with the prior added to its loss."""
        prior = self._own_prior()
        step = super().training_step(batch, *args, **kwargs)
        if step is None:  # the batch is skipped
            return None
        if not self.automatic_optimization:
            raise ModelError(
                "with automatic_optimization=False there is no loss to add to.",
                argument="automatic_optimization",
                got="False",
                remedy="Call the prior in training_step: "
                "loss = loss + self.attribution_prior(self, x, y).",
            )
        loss = step.get("loss") if isinstance(step, Mapping) else step
        if not isinstance(loss, Tensor):
            raise ModelError(
                f"training_step returned {type(step).__name__} without a loss.",
                got=type(step).__name__,
                expected="a loss",
                remedy="Return the loss, or a dictionary with it as 'loss'.",
            )
        x, y, context = self.prior_arguments(batch)
        term = prior(self, x, y, **context)
        self._log_both(loss, term, x)
        total = loss + term
        return {**step, "loss": total} if isinstance(step, Mapping) else total

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["attribution_prior"] = self._own_prior().state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "attribution_prior" in checkpoint:  # it may be of a training without
            self._own_prior().load_state_dict(checkpoint["attribution_prior"])

    def _own_prior(self) -> AttributionPrior:
        if not any(c.__name__ == "LightningModule" for c in type(self).__mro__):
            raise _not_behind(type(self).__name__)
        found = getattr(self, "attribution_prior", None)
        if not isinstance(found, AttributionPrior):
            raise ModelError(
                f"{type(self).__name__} has no attribution_prior.",
                argument="attribution_prior",
                got=quoted(found),
                remedy="Set it in the class: "
                "attribution_prior = AttributionPrior('sparsity', 0.1).",
            )
        if "attribution_prior" not in self.__dict__:
            self.attribution_prior = copy.deepcopy(found)  # with random numbers of its own
        return self.attribution_prior

    def _log_both(self, loss: Tensor, term: Tensor, x: Any) -> None:
        if self._trainer is None:  # called by hand
            return
        tensors = [t for t in (x.values() if isinstance(x, Mapping) else [x]) if t is not None]
        size = next(len(t) for t in tensors if isinstance(t, Tensor))
        parts = {"task_loss": loss.detach(), "attribution_prior": term.detach()}
        self.log_dict(parts, batch_size=size)


def _not_behind(name: str) -> Exception:
    try:
        import lightning.pytorch  # noqa: F401
    except ImportError:
        return MissingExtra("lightning", "training", f"the module '{name}'")
    return ModelError(
        f"{name} is no LightningModule.",
        got=name,
        expected="LightningModule",
        remedy=f"Put PriorModule before one: class {name}(PriorModule, Net).",
    )
