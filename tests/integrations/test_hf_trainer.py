"""Look-ahead in a Trainer: simulated as it trains, nothing else of it changed."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from curate import LookAheadMixin, read_log
from curate.errors import DataError, ModelError, OptionError, SimulationError
from curate.integrations import LiveLoop, witness
from curate.models import LabelsObjective, find_shift
from tests.integrations.loop import QUIET
from tests.integrations.prophecy import foretell

VOCABULARY, LENGTH = 30, 8


class LookAheadTrainer(LookAheadMixin, Trainer):
    pass


def bert(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=LENGTH,
            num_labels=2,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )


def gpt(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=LENGTH,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
        )
    )


def sentences(count: int, seed: int = 0) -> Dataset:
    """The label is whether a word of the lower half comes first."""
    words = np.random.default_rng(seed).integers(0, VOCABULARY, (count, LENGTH))
    return Dataset.from_dict(
        {
            "input_ids": words.tolist(),
            "labels": (words[:, 0] < VOCABULARY // 2).astype(int).tolist(),
            "row": list(range(count)),
        }
    )


def texts(count: int, seed: int = 0) -> Dataset:
    """Labels are the words themselves, of which some at the end do not count."""
    generator = np.random.default_rng(seed)
    words = generator.integers(0, VOCABULARY, (count, LENGTH))
    ends = generator.integers(3, LENGTH + 1, count)
    labels = np.where(np.arange(LENGTH) < ends[:, None], words, -100)
    return Dataset.from_dict({"input_ids": words.tolist(), "labels": labels.tolist()})


def trainer(
    folder: Path,
    model: nn.Module,
    data: Dataset,
    look_ahead: dict[str, Any],
    *,
    kind: Any = LookAheadTrainer,
    callbacks: Any = None,
    objective: Any = None,
    eval_dataset: Any = None,
    **arguments: Any,
) -> Any:
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "weight_decay": 0.1,
        "warmup_steps": 0,
        "max_grad_norm": 0.5,
        "lr_scheduler_type": "cosine",
    }
    given: dict[str, Any] = {}
    if kind is not Trainer:
        targets = sentences(12, 5) if "row" in data.column_names else texts(12, 5)
        given = {"targets": targets, "look_ahead": look_ahead, "objective": objective}
    return kind(
        model,
        TrainingArguments(
            output_dir=str(folder),
            **QUIET | settings | arguments,
        ),
        train_dataset=data,
        eval_dataset=eval_dataset,
        callbacks=callbacks,
        **given,
    )


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "classifier": (bert, sentences, {}),
    "classifier, gradients accumulated": (bert, sentences, {"gradient_accumulation_steps": 2}),
    "classifier, SGD": (bert, sentences, {"optim": "sgd"}),
    "language model": (gpt, texts, {}),
    "language model, gradients accumulated": (gpt, texts, {"gradient_accumulation_steps": 3}),
}


@pytest.mark.parametrize(
    ("case", "horizon", "rows"),
    [
        *((case, 3, 56) for case in CASES),
        ("classifier, gradients accumulated", 1, 56),
        ("classifier, gradients accumulated", 3, 60),
    ],
)
def test_what_is_simulated_is_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, horizon: int, rows: int
) -> None:
    """Param groups, warm-up, clipping, accumulation and the count of tokens: as in the Trainer.

    With 60 rows an epoch's last step is one of two batches that differ in size.
    """
    monkeypatch.setattr("curate.integrations.witness.AT_ONCE", 100)
    errors = foretell(monkeypatch)
    model, data, arguments = CASES[case]
    options = {"horizon": horizon, "rounds": 2, "keep": 0.5}
    made = trainer(tmp_path, model().double(), data(rows), options, **arguments)
    made.train()
    assert len(errors) == len(made.look_ahead_reports) >= 2
    # transformers takes the logits of language models to float32
    assert max(errors) < (1e-5 if data is texts else 1e-8)
    assert all(report.realized is not None for report in made.look_ahead_reports)
    assert all(report.kept * 2 == report.candidates for report in made.look_ahead_reports)


@pytest.mark.parametrize(
    ("case", "rows"),
    [*((case, 56) for case in CASES), ("classifier, gradients accumulated", 60)],
)
def test_weights_are_those_of_the_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, rows: int
) -> None:
    """The loss is the objective's then, whatever the model or the Trainer would divide it by."""
    monkeypatch.setattr("curate.integrations.witness.AT_ONCE", 100)
    errors = foretell(monkeypatch)
    model, data, arguments = CASES[case]
    options = {"horizon": 2, "keep": "weights"}
    made = trainer(
        tmp_path, model().double(), data(rows), options, **arguments | {"max_grad_norm": 0.0}
    )
    made.train()
    assert len(errors) == len(made.look_ahead_reports) >= 2
    assert max(errors) < (1e-5 if data is texts else 1e-6)
    assert all(report.kept == report.candidates for report in made.look_ahead_reports)


def test_uneven_batches_that_go_through_whole_train_as_the_trainer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored and watched, with nothing dropped: the mean of means that it is by itself."""
    monkeypatch.setattr("curate.integrations.witness.AT_ONCE", 100)
    monkeypatch.setattr("curate.integrations.paying.SURE", 1e9)
    ends = []
    for kind in (Trainer, LookAheadTrainer):
        model = bert(dropout=0.1)
        made = trainer(
            tmp_path,
            model,
            sentences(60),
            {"keep": "auto", "horizon": 2},
            kind=kind,
            gradient_accumulation_steps=2,
        )
        made.train()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert made.look_ahead_reports
    assert torch.equal(*ends)


def test_keeping_everything_trains_bit_for_bit_as_the_trainer_does(tmp_path: Path) -> None:
    ends = []
    for kind in (Trainer, LookAheadTrainer):
        model = bert(dropout=0.1)
        trainer(tmp_path, model, sentences(40), {"keep": 1.0, "horizon": 2}, kind=kind).train()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*ends)


def test_windows_are_simulated_in_training_mode_whatever_was_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    choose = LiveLoop.choose

    def watched(self: Any, window: Any) -> Any:
        modes.append(self.training.model.training)
        return choose(self, window)

    monkeypatch.setattr(LiveLoop, "choose", watched)

    class Evaluates(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            model.eval()

    made = trainer(
        tmp_path, bert(0.1).eval(), sentences(40), {"rounds": 1}, callbacks=[Evaluates()]
    )
    made.train()
    assert modes == [True] * 10


def test_rows_are_logged_and_kept_from_the_model(tmp_path: Path) -> None:
    made = trainer(
        tmp_path / "run",
        bert(),
        sentences(40),
        {"rounds": 1, "horizon": 2, "row": "row", "log": tmp_path / "log"},
    )
    made.train()
    log = read_log(tmp_path / "log")
    assert sorted(log["row"].to_list()) == sorted([*range(40)] * 2)
    assert log["kept"].mean() == 0.5


def watch_arguments(model: nn.Module) -> set[str]:
    """The names of all arguments that a model is called with from here on."""
    names: set[str] = set()
    model.register_forward_pre_hook(
        lambda _, __, arguments: names.update(arguments), with_kwargs=True
    )
    return names


def test_columns_that_options_name_stay_and_the_model_gets_those_it_accepts(
    tmp_path: Path,
) -> None:
    """`kind` and `source` are no arguments of the model, `labels` is one."""
    data = sentences(40).add_column("kind", [0, 1] * 20).add_column("source", [0, 0, 0, 1] * 10)
    kept = {}
    for label, group in ((None, "source"), ("kind", "source"), ("labels", "labels")):
        model = bert()
        names = watch_arguments(model)
        look_ahead = {"rounds": 1, "row": "row", "log": tmp_path / f"{label} {group}"}
        made = trainer(
            tmp_path / "run",
            model,
            data,
            look_ahead | {"label": label, "group_by": group},
            num_train_epochs=1,
        )
        made.train()
        assert "labels" in names
        assert not names & {"kind", "source", "row"}
        names.clear()
        made.evaluate(data)
        assert "labels" in names
        assert not names & {"kind", "source", "row"}
        log = read_log(look_ahead["log"]).sort("row")
        kept[label] = log["kept"].to_numpy()
        quotas = log.with_columns(group=pl.Series(data[group])).group_by("step", "group")
        counts = quotas.agg(pl.col("kept").sum(), size=pl.len())
        assert ((counts["kept"] - counts["size"] / 2).abs() < 1).all()  # by largest remainder
    assert not np.array_equal(kept[None], kept["kind"])


def test_a_column_that_no_batch_has_is_refused_by_name(tmp_path: Path) -> None:
    made = trainer(tmp_path, bert(), sentences(24), {"label": "kind"})
    with pytest.raises(DataError, match=r"label is 'kind', but .* it has input_ids, labels"):
        made.train()


def test_an_objective_of_ones_own(tmp_path: Path) -> None:
    def smoothed(model: Any, batch: Any) -> Tensor:
        logits = model(input_ids=batch["input_ids"]).logits
        return nn.functional.cross_entropy(
            logits, batch["labels"], reduction="none", label_smoothing=0.1
        )

    arguments = {"label_smoothing_factor": 0.1}
    with pytest.raises(
        OptionError, match=r"label_smoothing_factor \(0.1\) makes a loss of its own"
    ):
        trainer(tmp_path, bert(), sentences(24), {}, **arguments)
    made = trainer(tmp_path, bert(), sentences(24), {"rounds": 1}, objective=smoothed, **arguments)
    made.train()
    assert len(made.look_ahead_reports) == 6


class OwnLoss(Trainer):
    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        logits = model(input_ids=inputs["input_ids"]).logits
        weight = torch.tensor([1.0, 4.0])
        return nn.functional.cross_entropy(logits, inputs["labels"], weight=weight)


class OwnStep(Trainer):
    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(model, inputs, *args, **kwargs)
        for p in model.parameters():
            if p.grad is not None:
                p.grad.sign_()
        return loss


class OwnInputs(Trainer):
    def _prepare_inputs(self, inputs: Any) -> Any:
        inputs = super()._prepare_inputs(inputs)
        return inputs | {"input_ids": inputs["input_ids"].roll(1, 1)}


class TermInTraining(nn.Module):
    """A loss with a term that targets do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = bert()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        out = self.bert(input_ids=input_ids, labels=labels)
        if self.training and labels is not None:
            out.loss = out.loss + 0.1 * out.logits.square().mean()
        return out


class Masking(TrainerCallback):
    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        next(model.parameters()).grad.zero_()


class Boxing(TrainerCallback):
    @torch.no_grad()
    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        for p in model.parameters():
            p.clamp_(-0.01, 0.01)


@pytest.mark.parametrize(
    ("base", "model", "callbacks", "message"),
    [
        (OwnLoss, bert, None, "gradient .* is not that of the objective"),
        (OwnStep, bert, None, "gradient .* is not that of the objective"),
        (OwnInputs, bert, None, "gradient .* is not that of the objective"),
        (Trainer, TermInTraining, None, "gradient .* is not that of the objective"),
        (Trainer, bert, [Masking()], "gradient .* is not that of the objective"),
        (Trainer, bert, [Boxing()], "the update moves"),
    ],
)
def test_a_trainer_that_trains_in_its_own_way_is_told(
    tmp_path: Path, base: Any, model: Any, callbacks: Any, message: str
) -> None:
    kind = type("Chosen", (LookAheadMixin, base), {})
    options = {"keep": 0.5, "horizon": 2}
    made = trainer(tmp_path, model(), sentences(40), options, kind=kind, callbacks=callbacks)
    with pytest.raises(SimulationError, match=f"step [01] of the loop: .*{message}"):
        made.train()


def test_class_weights_in_a_models_own_loss_are_told_before_training(tmp_path: Path) -> None:
    class Weighted(TermInTraining):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
            out = self.bert(input_ids=input_ids)
            if labels is not None:
                weight = torch.tensor([1.0, 4.0])
                out.loss = nn.functional.cross_entropy(out.logits, labels, weight=weight)
            return out

    made = trainer(tmp_path, Weighted(), sentences(40), {"keep": 0.5})
    with pytest.raises(ModelError, match=r"the model's own loss is .* give an objective"):
        made.train()


def test_targets_without_labels_are_passed_over(tmp_path: Path) -> None:
    """The first target row is all prompt: its loss is that of no token."""
    made = trainer(tmp_path, gpt(), texts(24), {"keep": 0.5})
    rows = texts(12, 5).to_list()
    rows[0]["labels"] = [-100] * LENGTH
    made._target_data = Dataset.from_list(rows)
    made.train()
    assert len(made.look_ahead_reports) == 6


def test_the_last_step_is_measured_before_the_best_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is watched, too, and would be taken for one that moves weights elsewhere."""
    monkeypatch.setattr(witness, "SHARE", 1e9)
    arguments = dict.fromkeys(("eval_strategy", "save_strategy"), "steps")
    arguments |= dict.fromkeys(("eval_steps", "save_steps"), 2)
    made = trainer(
        tmp_path,
        bert(),
        sentences(48),
        {"keep": 0.5, "horizon": 2},
        max_steps=4,
        load_best_model_at_end=True,
        eval_dataset=sentences(12, 5),
        greater_is_better=True,  # those of step 2, where the loss is greater than in the end
        **arguments,
    )
    made.train()
    assert made.state.best_global_step == 2
    assert all(report.realized is not None for report in made.look_ahead_reports)


def test_no_window_goes_beyond_the_last_step(tmp_path: Path) -> None:
    made = trainer(tmp_path, bert(), sentences(80), {"keep": 0.5, "horizon": 4}, max_steps=6)
    made.train()
    assert [report.steps for report in made.look_ahead_reports] == [4, 2]


@pytest.mark.parametrize(
    ("look_ahead", "message"),
    [
        ({"depth": 3}, "look_ahead has no 'depth'; it knows effort, group_by"),
        ({"horizon": 0}, "horizon must be a number of steps, at least 1"),
    ],
)
def test_options_are_refused_before_anything_is_trained(
    tmp_path: Path, look_ahead: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        trainer(tmp_path, bert(), sentences(24), look_ahead)


def test_no_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give targets"):
        LookAheadTrainer(bert(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True))


class Output:
    def __init__(self, logits: Tensor, loss: Tensor | None = None) -> None:
        self.logits, self.loss = logits, loss


@pytest.mark.parametrize("shifts", [False, True])
def test_token_losses_are_those_of_the_model(shifts: bool) -> None:
    batch = {k: torch.tensor(v) for k, v in texts(6).to_dict().items()}
    model = gpt().eval()
    objective = LabelsObjective(shifts=shifts)
    losses, sizes = objective.losses(model, batch), objective.sizes(batch)
    if shifts:
        mean = (losses.sum() / sizes.sum()).item()
        assert mean == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert losses.shape == (6,)
    labels = batch["labels"][:, 1:] if shifts else batch["labels"]
    assert sizes.tolist() == (labels != -100).sum(1).tolist()
    accuracy = objective.metrics(model, batch)["token_accuracy"]
    assert accuracy.shape == (6,)
    assert 0 <= accuracy.min() <= accuracy.max() <= 1


def test_the_models_own_loss_says_whether_labels_are_shifted() -> None:
    batch = {k: torch.tensor(v) for k, v in texts(6).to_dict().items()}
    assert find_shift(gpt().eval(), batch)
    labels = {k: torch.tensor(v) for k, v in sentences(6).to_dict().items()}
    assert not find_shift(bert().eval(), labels, ["row"])

    def other(x: Tensor, labels: Tensor | None = None) -> Output:
        return Output(torch.zeros(len(x), 2), None if labels is None else torch.tensor(9.0))

    pair = {"x": torch.ones(2), "labels": torch.tensor([0, 1])}
    with pytest.raises(ModelError, match=r"own loss is 9, and the default objective makes it 0.69"):
        find_shift(other, pair)
    with pytest.raises(ModelError, match="gives no loss"):
        find_shift(lambda x, labels=None: other(x), pair)


def test_labels_that_are_numbers_are_regressed() -> None:
    objective = LabelsObjective(shifts=False, unknown_to_model=["row"])
    batch = {"x": torch.randn(4, 1), "labels": torch.randn(4), "row": torch.arange(4)}
    found = objective.losses(lambda x: Output(x), batch)
    assert torch.allclose(found, (batch["x"][:, 0] - batch["labels"]) ** 2)
    assert objective.metrics(lambda x: Output(x), batch) == {}
    with pytest.raises(ModelError, match="reads a tensor `labels`"):
        objective.sizes({"x": torch.ones(3)})


RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "half": ({"horizon": 3, "keep": 0.5}, {}),
    "auto": ({"horizon": 3, "keep": "auto"}, {}),
    "accumulated": ({"horizon": 2, "keep": 0.5}, {"gradient_accumulation_steps": 2}),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_training_from_a_checkpoint_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, case: str
) -> None:
    options, arguments = RESUMED[case]
    options = options | {"rounds": 1, "row": "row", "log": tmp_path / "log"}
    saving = {"save_strategy": "steps", "save_steps": 1} | arguments

    def trained(start: Path | None = None) -> Tensor:
        model = bert(0.1)
        folder = tmp_path / ("whole" if start is None else "again")
        made = trainer(folder, model, sentences(40), options, **saving)
        made.train(resume_from_checkpoint=None if start is None else str(start))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    expected = trained()
    log = read_log(tmp_path / "log").drop("seconds")
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*"))
    assert len(checkpoints) == (6 if "accumulated" in case else 10)
    for checkpoint in checkpoints:
        assert torch.equal(trained(checkpoint), expected), checkpoint
        assert read_log(tmp_path / "log").drop("seconds").equals(log), checkpoint


def test_where_the_trainer_skips_no_data_choosing_goes_on_with_other_batches(
    tmp_path: Path,
) -> None:
    options = {"horizon": 3, "rounds": 1, "row": "row", "log": tmp_path / "log"}
    saving = {"save_strategy": "steps", "save_steps": 1, "ignore_data_skip": True}
    trainer(tmp_path, bert(), sentences(40), options, **saving).train()
    again = trainer(tmp_path, bert(), sentences(40), options, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(report.realized is not None for report in again.look_ahead_reports)
    assert again.look_ahead_reports[0].first_step == 3
