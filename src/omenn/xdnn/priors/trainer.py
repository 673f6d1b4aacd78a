"""A prior on attributions for the ``Trainer`` of transformers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from omenn.check import wrong
from omenn.errors import MissingExtra
from omenn.files.atomic import write_checkpoint
from omenn.xdnn.priors.prior_loss import AttributionPrior

if TYPE_CHECKING:
    from transformers import Trainer


def with_prior(
    trainer: type[Trainer], prior: AttributionPrior, *, context: Sequence[str] = ()
) -> type[Trainer]:
    """A subclass of a Trainer whose loss has weight · prior added, while the model trains.

    What is explained are the model's real-valued inputs (``pixel_values``, ``inputs_embeds``, …);
    ``input_ids`` are embedded first. The explained output is that of the label; the largest, or
    the only one, where labels are of real numbers. A model in evaluation has its own loss. Logs
    have ``attribution_prior`` and ``task_loss`` beside ``loss``, their sum. Checkpoints keep the
    state of the prior's random numbers. Where a batch is made differently, override
    ``prior_arguments(self, model, inputs)``, which returns (x, y, context) for the prior.

    Args:
        trainer: ``transformers.Trainer`` or a subclass.
        prior: each trainer has its own copy of it.
        context: columns of the data that are for the prior and not for the model (``"mask"``);
            they need ``remove_unused_columns=False``.

    Raises:
        InputError: not a Trainer, or not a prior.
        MissingExtra: transformers is not installed.

    Example:
        >>> from omenn.xdnn import AttributionPrior
        >>> def train(model, arguments, data) -> None:
        ...     from transformers import Trainer
        ...     sparse = with_prior(Trainer, AttributionPrior("sparsity", 0.1))
        ...     sparse(model, arguments, train_dataset=data).train()
    """
    try:
        from transformers import Trainer
    except ImportError:
        raise MissingExtra("transformers", "training", "with_prior") from None
    if not (isinstance(trainer, type) and issubclass(trainer, Trainer)):
        raise wrong("trainer", trainer, "transformers.Trainer or a subclass")
    if not isinstance(prior, AttributionPrior):
        raise wrong("prior", prior, "an AttributionPrior")
    name, columns = f"{trainer.__name__}WithPrior", tuple(context)
    return type(name, (_Prior, trainer), {"_given": prior, "_columns": columns})


class _Prior:
    """What is put before a Trainer."""

    _given: AttributionPrior
    _columns: tuple[str, ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.attribution_prior = copy.deepcopy(self._given)
        self._terms: list[Tensor] = []  # since the last log
        super().__init__(*args, **kwargs)

    def prior_arguments(
        self, model: nn.Module, inputs: Mapping[str, Any]
    ) -> tuple[Any, Any, Mapping[str, Any]]:
        """(x, y, context) of the prior."""
        this: Any = self
        context = {k: v for k, v in inputs.items() if k in self._columns}
        kept = {*inputs} - {*context, *(this.label_names or ()), "labels"}
        x = {k: v for k, v in inputs.items() if k in kept}
        if "input_ids" in x and "inputs_embeds" not in x:
            embed: Any = model
            x["inputs_embeds"] = embed.get_input_embeddings()(x.pop("input_ids"))
        y = inputs.get("labels")
        single = getattr(getattr(model, "config", None), "num_labels", None) == 1
        if not isinstance(y, Tensor) or y.is_floating_point() or single:
            y = None
        return x, y, context

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        above: Any = super()
        own = {k: v for k, v in inputs.items() if k not in self._columns}
        found = above.compute_loss(model, own, return_outputs=return_outputs, **kwargs)
        if not model.training:
            return found
        this: Any = self
        bare = this.accelerator.unwrap_model(model)
        x, y, context = self.prior_arguments(bare, inputs)
        term = self.attribution_prior(bare, x, y, **context)
        self._terms.append(term.detach())
        if self._scaled(kwargs.get("num_items_in_batch")):
            term = term / getattr(this, "current_gradient_accumulation_steps", 1)
        if return_outputs:
            return found[0] + term, found[1]
        return found + term

    def _scaled(self, items: Any) -> bool:
        """Whether a loss is not divided by the number of accumulated batches any more."""
        this: Any = self
        scaled = getattr(this, "loss_is_scaled_for_ga", None)
        if scaled is not None:
            return scaled
        counted = this.model_accepts_loss_kwargs and items is not None
        return counted or this.compute_loss_func is not None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._terms:
            mean = float(torch.stack(self._terms).mean())
            logs |= {"task_loss": logs["loss"] - mean, "attribution_prior": mean}
            self._terms.clear()
        above: Any = super()
        above.log(logs, *args, **kwargs)

    # The random numbers of the prior are saved and loaded with all the others.

    def _save_rng_state(self, output_dir: str) -> None:
        above: Any = super()
        above._save_rng_state(output_dir)
        write_checkpoint(self.attribution_prior.state_dict(), self._state_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        above: Any = super()
        above._load_rng_state(checkpoint)
        path = None if checkpoint is None else self._state_file(checkpoint)
        if path is not None and path.exists():  # it may be of a training without
            self.attribution_prior.load_state_dict(torch.load(path, weights_only=True))

    def _state_file(self, folder: str) -> Path:
        this: Any = self
        return Path(folder) / f"attribution_prior_{this.args.process_index}.pt"
