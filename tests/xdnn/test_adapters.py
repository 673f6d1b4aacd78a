"""The prior in Lightning and in the Trainer of transformers: small real trainings, offline."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from omenn.errors import InputError, MissingExtra, ModelError
from omenn.xdnn import AttributionPrior
from omenn.xdnn.priors.lightning import PriorModule
from omenn.xdnn.priors.trainer import with_prior


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ROWS = [(row, k % 3) for k, row in enumerate(drawn(8, 5))]


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No chatter, no files but in an empty folder, and warnings of other packages not as errors."""
    monkeypatch.chdir(tmp_path)
    loggers = [logging.getLogger(n) for n in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for log, level in zip(loggers, levels, strict=True):
        log.setLevel(level)


# --- Lightning


def classifier(step: Any = None) -> type:
    import lightning

    class Net(lightning.LightningModule):
        def __init__(self, width: int = 6) -> None:
            super().__init__()
            self.save_hyperparameters()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                self.layers = nn.Sequential(
                    nn.Linear(5, width), nn.BatchNorm1d(width), nn.GELU(), nn.Dropout(0.3),
                    nn.Linear(width, 3),
                )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            return loss if step is None else step(self, loss)

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("validation", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Net


def sparse(net: type, prior: AttributionPrior, **more: Any) -> type:
    return type("Sparse", (PriorModule, net), {"attribution_prior": prior, **more})


def fit(module: Any, epochs: int = 1, checkpoint: str | None = None) -> Any:
    import lightning

    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(ROWS, batch_size=4), ckpt_path=checkpoint)
    return trainer


def by_hand(module: Any, prior: AttributionPrior | None) -> tuple[list[float], list[Tensor]]:
    """The same training as a plain loop: (terms, parameters)."""
    optimiser, terms = torch.optim.SGD(module.parameters(), lr=0.1), []
    module.train()
    for x, y in DataLoader(ROWS, batch_size=4):
        optimiser.zero_grad()
        loss = F.cross_entropy(module.layers(x), y)
        if prior is not None:
            term = prior(module.layers, x, y)
            terms.append(float(term.detach()))
            loss = loss + term
        loss.backward()
        optimiser.step()
    return terms, [p.detach() for p in module.parameters()]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("method", ["xgradient", "omenn"])
def test_lightning_is_the_plain_loop(method: str, tmp_path: Path) -> None:
    net = classifier()
    module = sparse(net, AttributionPrior("sparsity", 0.5, method, fraction=0.5))()
    torch.manual_seed(3)
    trainer = fit(module)
    torch.manual_seed(3)
    alike = AttributionPrior("sparsity", 0.5, method, fraction=0.5)
    terms, wanted = by_hand(net(), alike)
    torch.manual_seed(3)
    without = by_hand(net(), None)[1]
    for p, w in zip(module.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.detach(), w)
    assert not all(torch.allclose(w, p) for w, p in zip(without, wanted, strict=True))
    logged = trainer.callback_metrics
    assert float(logged["attribution_prior"]) == pytest.approx(terms[-1], rel=1e-5)
    assert float(logged["task_loss"]) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quiet")
def test_lightning_hands_the_context_on_and_keeps_a_dictionary() -> None:
    seen: list[Any] = []

    def prior(a: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        seen.append((mask, target))
        return a.square().mean()

    net = classifier(lambda self, loss: {"loss": loss, "extra": 1})
    module = sparse(net, AttributionPrior(prior, 1.0))()
    x, y = drawn(4, 5), torch.tensor([0, 1, 2, 0])
    step = module.training_step((x, y, {"mask": x > 0}), 0)
    assert step["extra"] == 1
    assert step["loss"].requires_grad
    assert torch.equal(seen[0][0], x > 0)
    assert torch.equal(seen[0][1], y)
    assert module.prior_arguments((x, y.float()))[1] is None


@pytest.mark.usefixtures("quiet")
def test_lightning_resumes_where_it_was(tmp_path: Path) -> None:
    """Three epochs at a stretch, or one and then two from its checkpoint: the same weights."""
    net = classifier()
    make = lambda: sparse(net, AttributionPrior("sparsity", 0.5, fraction=0.5))()  # noqa: E731
    found: list[Tensor] = []
    for parts in ((3,), (1, 3)):
        checkpoint, module = None, None
        for epochs in parts:
            module = make()
            module.layers[3].p = 0.0  # dropout has random numbers of its own
            trainer = fit(module, epochs, checkpoint)
            checkpoint = str(tmp_path / f"{len(parts)}-{epochs}.ckpt")
            trainer.save_checkpoint(checkpoint)
        found.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*found)
    state = torch.load(checkpoint, weights_only=True)["attribution_prior"]
    assert torch.equal(state["generator"], module.attribution_prior.state_dict()["generator"])


@pytest.mark.usefixtures("quiet")
def test_two_modules_have_random_numbers_of_their_own() -> None:
    kind = sparse(classifier(), AttributionPrior("sparsity", 0.5, fraction=0.5))
    first, second = kind(), kind()
    batch = (drawn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2]))
    first.training_step(batch, 0)
    assert first.attribution_prior is not kind.attribution_prior
    fresh = AttributionPrior("sparsity", 0.5).state_dict()["generator"]
    second.training_step(batch, 0)
    states = [m.attribution_prior.state_dict()["generator"] for m in (first, second)]
    assert torch.equal(*states)
    assert torch.equal(kind.attribution_prior.state_dict()["generator"], fresh)
    assert not torch.equal(states[0], fresh)


@pytest.mark.usefixtures("quiet")
def test_lightning_says_what_is_missing() -> None:
    x, y = drawn(4, 5), torch.tensor([0, 1, 2, 0])
    net, prior = classifier(), AttributionPrior("sparsity", 1)
    with pytest.raises(ModelError, match=r"Sparse has no attribution_prior\. Set it in the class"):
        type("Sparse", (PriorModule, net), {})().training_step((x, y), 0)
    with pytest.raises(
        ModelError, match=r"Alone is no LightningModule\. Put PriorModule before one"
    ):
        type("Alone", (PriorModule,), {"attribution_prior": prior})().training_step((x, y), 0)
    with pytest.raises(InputError, match=r"the batch is a list of 4; \(x, y\) or .* was expected"):
        sparse(net, prior)().prior_arguments([x, y, x, y])
    with pytest.raises(InputError, match=r"the batch is a dict; .* Override prior_arguments"):
        sparse(net, prior)().prior_arguments({"x": x})
    none = sparse(classifier(lambda self, loss: {"other": loss}), prior)()
    with pytest.raises(ModelError, match="training_step returned dict without a loss"):
        none.training_step((x, y), 0)
    by_hand = sparse(net, prior)()
    by_hand.automatic_optimization = False
    with pytest.raises(ModelError, match="automatic_optimization=False there is no loss to add"):
        by_hand.training_step((x, y), 0)
    skipped = sparse(classifier(lambda self, loss: None), prior)()
    assert skipped.training_step((x, y), 0) is None


def test_without_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    module = type("Alone", (PriorModule,), {"attribution_prior": AttributionPrior("sparsity", 1)})()
    with pytest.raises(MissingExtra, match=r"'Alone' needs the package 'lightning'.*omenn\[train"):
        module.training_step((drawn(4, 5), torch.zeros(4).long()), 0)


# --- transformers


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ViTForImageClassification(
            ViTConfig(
                image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1,
                num_attention_heads=2, intermediate_size=12, num_labels=3,
            )
        )  # fmt: skip


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=12, num_labels=3, max_position_embeddings=8,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )
        )  # fmt: skip


IMAGES = [
    {"pixel_values": image, "labels": k % 3, "mask": image[0] > 0}
    for k, image in enumerate(drawn(8, 3, 16, 16))
]
SENTENCES = [
    {"input_ids": torch.tensor([2, 5 + k, 7, 3]), "attention_mask": torch.tensor([1, 1, 1, k % 2]),
     "labels": k % 3}
    for k in range(8)
]  # fmt: skip


def trained(prior: AttributionPrior | None, model: Any, data: Any, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    settings: dict[str, Any] = {
        "output_dir": "out", "per_device_train_batch_size": 4, "max_steps": 2, "report_to": "none",
        "use_cpu": True, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        "remove_unused_columns": False, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0,
        "lr_scheduler_type": "constant",
    }  # fmt: skip
    resume, loss = options.pop("resume", None), options.pop("loss", None)
    columns = options.pop("context", ())
    kind = Trainer if prior is None else with_prior(Trainer, prior, context=columns)
    trainer = kind(
        model, TrainingArguments(**settings | options), train_dataset=data, compute_loss_func=loss
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture
def spoken(quiet: None, capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """What the Trainer prints is no concern here."""
    yield
    capsys.readouterr()


@pytest.mark.usefixtures("spoken")
@pytest.mark.parametrize("method", ["xgradient", "omenn"])
@pytest.mark.parametrize("make", [vit, bert])
def test_trainer_is_the_plain_loop(make: Any, method: str, tmp_path: Path) -> None:
    data = [{k: v for k, v in row.items() if k != "mask"} for row in IMAGES]
    data = data if make is vit else SENTENCES
    prior = lambda: AttributionPrior("sparsity", 0.5, method, fraction=0.5)  # noqa: E731
    trainer = trained(prior(), make(), data)
    order = [data[i] for i in _order(len(data))]
    model, own = make().train(), prior()
    optimiser, terms = torch.optim.SGD(model.parameters(), lr=0.1), []
    for rows in (order[:4], order[4:]):
        batch = {k: torch.stack([torch.as_tensor(r[k]) for r in rows]) for k in rows[0]}
        optimiser.zero_grad()
        loss, y = model(**batch).loss, batch.pop("labels")
        if make is bert:
            ids = batch.pop("input_ids")
            batch["inputs_embeds"] = model.get_input_embeddings()(ids)
        term = own(model, batch, y)
        terms.append(float(term.detach()))
        (loss + term).backward()
        optimiser.step()
    for p, w in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, w)
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["attribution_prior"] for row in logs] == pytest.approx(terms, rel=1e-4)
    for row in logs:
        assert row["loss"] == pytest.approx(row["task_loss"] + row["attribution_prior"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _order(n: int) -> list[int]:
    """How the Trainer shuffles, from its seed."""
    from accelerate.data_loader import SeedableRandomSampler

    sampler = SeedableRandomSampler(range(n), generator=torch.Generator(), data_seed=42)
    return list(sampler)


@pytest.mark.usefixtures("spoken")
def test_trainer_hands_columns_on_to_the_prior() -> None:
    seen: list[Any] = []

    def prior(a: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        seen.append((a.shape, mask.shape, target.shape))
        return a.square().mean()

    trained(AttributionPrior(prior, 1.0), vit(), IMAGES, context=["mask"])
    assert seen == [((4, 3, 16, 16), (4, 16, 16), (4,))] * 2


def summed(outputs: Any, labels: Tensor, num_items_in_batch: Any) -> Tensor:
    """The loss over all accumulated batches, which the Trainer does not divide any more."""
    return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.usefixtures("spoken")
@pytest.mark.parametrize("loss", [None, summed])
def test_trainer_accumulates_batches_to_the_same(loss: Any) -> None:
    """One batch of four, or two of two: the prior's gradient is their mean."""
    data = [{k: v for k, v in row.items() if k != "mask"} for row in IMAGES]

    def mean(a: Tensor) -> Tensor:
        return 1e7 * a.square().mean()

    found, logged = [], []
    for size, steps in ((4, 1), (2, 2)):
        more = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = trained(AttributionPrior(mean, 1.0), vit(), data, loss=loss, **more)
        found.append([p.detach() for p in trainer.model.parameters()])
        logged.append([row for row in trainer.state.log_history if "loss" in row])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(*logged, strict=True):
        assert a["attribution_prior"] == pytest.approx(b["attribution_prior"], rel=1e-4)
        assert a["task_loss"] == pytest.approx(b["task_loss"], rel=1e-3)
    assert logged[0][0]["attribution_prior"] > 0.01  # it is felt, in the first step at least


@pytest.mark.usefixtures("spoken")
def test_trainer_in_half_precision_attributes_in_float32() -> None:
    data = [{k: v for k, v in row.items() if k != "mask"} for row in IMAGES]
    seen: list[Tensor] = []

    def prior(a: Tensor) -> Tensor:
        seen.append(a.detach())
        return a.square().mean()

    term = AttributionPrior(prior, 1.0)
    trained(term, vit(), data, bf16=True, max_steps=1)
    trained(term, vit(), data, max_steps=1)
    assert torch.equal(seen[0], seen[1])


@pytest.mark.usefixtures("spoken")
def test_trainer_evaluates_without_the_prior_and_resumes_where_it_was() -> None:
    # Not the ViT: transformers 5 renames its weights in a checkpoint, and does not find them again.
    prior = AttributionPrior("sparsity", 0.5, fraction=0.5)
    steps = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    whole = trained(prior, bert(), SENTENCES, output_dir="whole", **steps)
    again = trained(prior, bert(), SENTENCES, resume="whole/checkpoint-1", max_steps=3)
    for p, w in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(p, w)
    torch.save(AttributionPrior("sparsity", 1, seed=9).state_dict(), _STATE)
    other = trained(prior, bert(), SENTENCES, resume="whole/checkpoint-1", max_steps=3)
    assert not torch.equal(other.model.classifier.weight, whole.model.classifier.weight)
    model, batch = whole.model.eval(), {}
    for name in SENTENCES[0]:
        batch[name] = torch.stack([torch.as_tensor(row[name]) for row in SENTENCES])
    loss = float(model(**batch).loss.detach())
    assert whole.evaluate(SENTENCES)["eval_loss"] == pytest.approx(loss, abs=1e-4)


_STATE = "whole/checkpoint-1/attribution_prior_0.pt"


@pytest.mark.usefixtures("spoken")
@pytest.mark.parametrize("method", ["xgradient", "omenn"])
def test_a_model_that_accelerate_has_wrapped_is_attributed_in_float32(method: str) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3))
    x, y, prior = drawn(4, 5), torch.tensor([0, 1, 2, 0]), AttributionPrior("sparsity", 1, method)
    wanted = prior.attributions(net, x, y)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        wrapped: Any = Accelerator(cpu=True, mixed_precision="bf16").prepare(net)
        forward = wrapped.forward
        half = wrapped(x)
        assert torch.equal(prior.attributions(wrapped, x, y), wanted)
        with pytest.raises(InputError, match=r"not finite|NaN"):
            prior(wrapped, x / 0, y)
        assert wrapped.forward is forward
        assert torch.equal(wrapped(x), half)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_what_is_no_trainer() -> None:
    prior = AttributionPrior("sparsity", 1)
    with pytest.raises(InputError) as caught:
        with_prior(dict, prior)  # pyright: ignore[reportArgumentType]
    assert (caught.value.argument, caught.value.got) == ("trainer", "<class 'dict'>")
    from transformers import Trainer

    with pytest.raises(InputError) as caught:
        with_prior(Trainer, "sparsity")  # pyright: ignore[reportArgumentType]
    assert (caught.value.argument, caught.value.got) == ("prior", "'sparsity'")
    assert with_prior(Trainer, prior).__name__ == "TrainerWithPrior"


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match="with_prior needs the package 'transformers'"):
        with_prior(dict, AttributionPrior("sparsity", 1))  # pyright: ignore[reportArgumentType]
