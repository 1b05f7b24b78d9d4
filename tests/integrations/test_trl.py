"""Look-ahead in TRL's own trainers: what is simulated is what they do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import TrainingArguments

from curate import read_log
from curate.errors import DataError, OptionError
from curate.integrations import witness
from tests.integrations.prophecy import foretell
from tests.integrations.trl_tiny import flattening, texts, trainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL uses what goes away
PACKED = {"packing": True, "max_length": 24, "per_device_train_batch_size": 3}
FREE = {"padding_free": True, "max_length": None}
TWICE = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
AGAIN = {"gradient_checkpointing": True}
BEFORE = {"precompute_ref_log_probs": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "texts": ("text", {}),
    "texts, accumulated": ("text", TWICE),
    "completions": ("completion", {}),
    "completions, LoRA": ("completion", {"lora": True}),
    "what the assistant says": ("chat", {"assistant_only_loss": True}),
    "padding-free": ("completion", FREE),
    "padding-free, accumulated, checkpointed": ("completion", FREE | TWICE | AGAIN),
    "packed": ("text", PACKED),
    "packed, accumulated": ("completion", PACKED | TWICE | {"per_device_train_batch_size": 2}),
    "packed, LoRA, checkpointed": ("text", PACKED | AGAIN | {"lora": True}),
    "packed across texts": ("text", PACKED | {"packing_strategy": "wrapped"}),
    "preferences": ("preference", {}),
    "preferences, accumulated": ("preference", TWICE),
    "preferences, LoRA, checkpointed": ("preference", AGAIN | {"lora": True}),
    "preferences, log-probabilities at hand": ("preference", BEFORE),
    "preferences, LoRA, log-probabilities at hand": ("preference", BEFORE | {"lora": True}),
}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every step is compared with what was simulated, and every window with its replay."""
    monkeypatch.setattr(witness, "SHARE", 1e9)
    return foretell(monkeypatch)


def weights_of(made: Any) -> Tensor:
    made.train()
    return torch.cat([p.detach().flatten() for p in made.model.parameters() if p.requires_grad])


@pytest.mark.parametrize("case", CASES)
def test_what_is_simulated_is_what_happens(tmp_path: Path, watched: list[float], case: str) -> None:
    kind, arguments = CASES[case]
    made = trainer(tmp_path, kind, texts(kind, 32, 0.5), {"horizon": 2, "rounds": 1}, **arguments)
    made.train()
    assert len(watched) == len(made.look_ahead_reports) >= 2
    assert max(watched) < 5e-3  # where a gradient is next to 0, Adam makes rounding large
    assert all(report.kept < report.candidates for report in made.look_ahead_reports)


@pytest.mark.parametrize("case", ["packed", "preferences", "preferences, LoRA, checkpointed"])
def test_passes_in_bfloat16_are_followed(tmp_path: Path, watched: list[float], case: str) -> None:
    """Every step is watched, and refused where its gradient is another by more than rounding."""
    kind, arguments = CASES[case]
    options = {"horizon": 2, "rounds": 1}
    made = trainer(tmp_path, kind, texts(kind, 32, 0.5), options, bf16=True, **arguments)
    made.train()
    assert all(report.realized is not None for report in made.look_ahead_reports)


@pytest.mark.parametrize("case", ["completions", "padding-free", "packed", "preferences"])
def test_weights_are_those_of_the_loss(tmp_path: Path, watched: list[float], case: str) -> None:
    kind, arguments = CASES[case]
    made = trainer(
        tmp_path,
        kind,
        texts(kind, 32, 0.5),
        {"keep": "weights", "horizon": 2},
        **arguments | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    )
    made.train()
    assert len(watched) >= 2
    assert max(watched) < 5e-3  # where a gradient is next to 0, Adam makes rounding large
    assert all(report.kept == report.candidates for report in made.look_ahead_reports)


def test_texts_that_transformers_lays_end_to_end_are_chosen_one_by_one(
    tmp_path: Path, watched: list[float]
) -> None:
    """Without TRL: a plain Trainer with the collator that flattens."""
    made = flattening(tmp_path, {"horizon": 2, "rounds": 1})
    made.train()
    assert max(watched) < 5e-3
    assert [(r.kept, r.candidates) for r in made.look_ahead_reports] == [(8, 16)] * 2


@pytest.mark.parametrize("case", ["completions", "padding-free", "packed", "preferences"])
def test_keeping_everything_trains_bit_for_bit_as_the_trainer_does(
    tmp_path: Path, case: str
) -> None:
    kind, arguments = CASES[case]
    data = texts(kind, 24)
    ends = [
        weights_of(trainer(tmp_path, kind, data, options, **arguments))
        for options in (None, {"keep": 1.0})
    ]
    assert torch.equal(*ends)


@pytest.mark.parametrize("case", ["padding-free", "preferences, LoRA, checkpointed"])
def test_influences_are_those_of_leaving_a_row_out(tmp_path: Path, case: str) -> None:
    """Retrained by TRL's trainer without the row, and evaluated by it."""
    kind, arguments = CASES[case]
    one = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.02, **arguments}
    data, targets = texts(kind, 8, 0.5), texts(kind, 12, seed=5)
    options = {"keep": 0.5, "effort": "exact", "rounds": 1, "row": "row", "log": tmp_path / "log"}
    trainer(tmp_path / "run", kind, data, options, targets=targets, **one).train()
    log = read_log(tmp_path / "log").sort("row")

    def loss(rows: list[int]) -> float:
        given = {"eval_dataset": targets, "per_device_eval_batch_size": 12}
        made = trainer(tmp_path / "plain", kind, data.select(rows), **one | given)
        made.train()
        return float(made.evaluate()["eval_loss"])

    everything = loss([*range(8)])
    without = [loss([k for k in range(8) if k != row]) - everything for row in range(8)]
    found = log["influence"].to_numpy()
    assert np.abs(found - without).max() < 0.05 * np.abs(without).max()


@pytest.mark.parametrize("case", ["completions", "padding-free", "preferences, LoRA, checkpointed"])
def test_good_rows_are_kept(tmp_path: Path, case: str) -> None:
    kind, arguments = CASES[case]
    data = texts(kind, 96, 0.5)
    options = {"keep": 0.5, "horizon": 2, "row": "row", "log": tmp_path / "log"}
    arguments = arguments | {"num_train_epochs": 3, "per_device_train_batch_size": 16}
    trainer(tmp_path / "run", kind, data, options, **arguments).train()
    log = read_log(tmp_path / "log")
    bad = np.array(data["bad"])[log["row"].to_numpy()]
    kept = log["kept"].to_numpy()
    assert kept[~bad].mean() > kept[bad].mean() + 0.3


def test_good_rows_weigh_more(tmp_path: Path) -> None:
    data = texts("completion", 96, 0.5)
    options = {"keep": "weights", "horizon": 2, "row": "row", "log": tmp_path / "log"}
    arguments = {"num_train_epochs": 3, "per_device_train_batch_size": 16}
    trainer(tmp_path / "run", "completion", data, options, **arguments).train()
    log = read_log(tmp_path / "log")
    bad = np.array(data["bad"])[log["row"].to_numpy()]
    weights = log["weight"].to_numpy()
    assert weights[~bad].mean() > weights[bad].mean() + 0.3


@pytest.mark.parametrize("case", ["padding-free", "preferences, LoRA, checkpointed"])
def test_a_training_from_a_checkpoint_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, case: str
) -> None:
    kind, arguments = CASES[case]
    saving = arguments | {"save_strategy": "steps", "save_steps": 1}
    options = {"horizon": 3, "rounds": 1}
    whole = trainer(tmp_path / "whole", kind, texts(kind, 32, 0.5), options, **saving)
    expected = weights_of(whole)
    again = trainer(tmp_path / "again", kind, texts(kind, 32, 0.5), options, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    ends = [p.detach().flatten() for p in again.model.parameters() if p.requires_grad]
    assert torch.equal(torch.cat(ends), expected)


def test_targets_are_prepared_and_the_eval_dataset_stays_what_it_was(tmp_path: Path) -> None:
    held = texts("completion", 6, seed=9)
    targets = {"one": texts("completion", 8, seed=5), "other": texts("completion", 8, seed=6)}
    arguments: dict[str, Any] = {"eval_strategy": "epoch", "targets": targets}
    made = trainer(
        tmp_path, "completion", texts("completion", 16), {}, eval_dataset=held, **arguments
    )
    assert len(made.eval_dataset) == 6
    made.train()
    assert [len(part) for part in made._target_data.values()] == [8, 8]
    assert "eval_loss" in made.evaluate()
    named = trainer(
        tmp_path, "completion", texts("completion", 16), {}, eval_dataset={"held": held}, **FREE
    )
    assert [*named.eval_dataset] == ["held"]
    with pytest.raises(OptionError, match="eval_strategy is 'epoch', but there is no eval_dataset"):
        trainer(tmp_path, "completion", texts("completion", 16), {}, **arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("text", {"loss_type": "dft"}, r"loss_type \(dft\) makes a loss of its own"),
        ("preference", {"loss_type": "ipo"}, r"loss_type \(\['ipo'\]\) makes a loss of its own"),
        ("preference", {"ld_alpha": 0.5}, r"ld_alpha \(0.5\) makes a loss of its own"),
        ("preference", {"f_divergence_type": "forward_kl"}, "f_divergence_type .* of its own"),
        ("preference", {"sync_ref_model": True}, "sync_ref_model .* of its own"),
    ],
)
def test_losses_that_are_not_simulated_are_told(
    tmp_path: Path, kind: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        trainer(tmp_path, kind, texts(kind, 16), {}, **arguments)


@pytest.mark.parametrize(
    ("kind", "keep", "message"),
    [("preference", 0.5, "metric of every pair"), ("text", "weights", "runs in one process")],
)
def test_what_several_processes_cannot_do_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, keep: Any, message: str
) -> None:
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda _: 2))
    with pytest.raises(OptionError, match=message):
        trainer(tmp_path, kind, texts(kind, 16), {"keep": keep})


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (FREE | {"pad_to_multiple_of": 8}, {}, OptionError, r"filled up \(pad_to_multiple_of\)"),
        (
            PACKED,
            {"group_by": "row"},
            DataError,
            "group_by is 'row', but a batch .* has no such key",
        ),
    ],
)
def test_batches_that_cannot_be_cut_are_told(
    tmp_path: Path, arguments: dict[str, Any], options: dict[str, Any], error: Any, message: str
) -> None:
    made = trainer(tmp_path, "text", texts("text", 24), options, **arguments)
    with pytest.raises(error, match=message):
        made.train()
