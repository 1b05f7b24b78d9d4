"""Autocast and activation checkpointing: the same scores, in less of something."""

from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from curate.influence import Scoring, score_window
from curate.pipeline.job import Job, prepare
from curate.pipeline.select import run_select
from curate.recipe import check_recipe
from curate.recipe.load import parse
from curate.trajectory import graph_size, record
from tests import words
from tests.job import curate, sets

CPU = torch.device("cpu")
CHECKPOINTING = "training.checkpointing=true"
LLAMA = "model={pretrained: llama, tokenizer: tiny}"
TWO_TARGETS = "data.validation={near: texts.parquet, same: texts.parquet}"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPT-2 with dropout, and a Llama in "llama"."""
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path, dropout=0.2)
    words.llama().save_pretrained(str(tmp_path / "llama"))
    return tmp_path


def job(*overrides: str, dtype: str = "float64") -> Job:
    return prepare(check_recipe(parse(words.RECIPE), [f"training.dtype={dtype}", *overrides]), CPU)


def influences(prepared: Job, scoring: Scoring, steps: int = 3) -> tuple[Tensor, Tensor]:
    """Of the first steps, shape (Q, n), and where training ended."""
    task, rule, state = prepared.start(0)
    recording = record(task, rule, state, prepared.steps(0)[:steps], snapshots=9)
    scores = score_window(task, rule, recording, prepared.data.targets, scoring=scoring)
    return torch.cat(scores.influences, dim=1), recording.final.theta


@pytest.mark.parametrize(
    "overrides",
    [[TWO_TARGETS], ["training.micro_batch=3"], ["model.lora={rank: 2}"], [LLAMA, TWO_TARGETS]],
    ids=["two targets", "micro-batches", "lora", "llama"],
)
def test_checkpointing_changes_no_score(there: Path, overrides: list[str]) -> None:
    plain, end = influences(job(*overrides), Scoring())
    again, same_end = influences(job(*overrides, CHECKPOINTING), Scoring())
    assert (same_end - end).norm() <= 1e-10 * end.norm()
    # transformers normalizes in float32 whatever the model's precision
    assert (again - plain).norm() <= 1e-6 * plain.norm()


def test_checkpointing_holds_less(there: Path) -> None:
    """What autograd holds of a step, and of the pass that takes slopes."""

    def held(*overrides: str) -> int:
        prepared = job(*overrides)
        task, _, state = prepared.start(0)
        return graph_size(task, state.theta, prepared.steps(0)[0])

    assert held(CHECKPOINTING) < 0.5 * held()


def test_checkpointing_is_for_pretrained_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(__file__).parent.parent / "recipes/digits.yaml"
    assert curate(str(recipe), "--out", str(tmp_path / "out"), *sets(CHECKPOINTING)) == 2
    assert "training.checkpointing: is for pretrained models" in capsys.readouterr().err


@pytest.mark.parametrize("scoring", [Scoring(jump_bytes=2**30), Scoring()], ids=["jump", "linear"])
def test_autocast(there: Path, scoring: Scoring) -> None:
    """Passes in bfloat16, state in float32: order and size as in float32.

    Without dropout, which falls otherwise in another precision. The linear score divides by
    gradients that are nearly 0 unless eps is well above them, and would be noise. How far off
    depends on how a processor multiplies in bfloat16: 0.208 on one, under 0.2 on another.
    """
    jump = "linear" if scoring.jump_bytes is None else "exact"
    settings = [LLAMA, "training.optimizer.eps=1e-4", f"selection.jump={jump}"]
    full, _ = influences(job(*settings, dtype="float32"), scoring, steps=8)
    half, end = influences(
        job("training.precision=bf16", *settings, dtype="float32"), scoring, steps=8
    )
    assert end.dtype == torch.float32
    assert not torch.equal(full, half)
    assert spearmanr(full[0], half[0]).statistic > 0.98
    assert (half - full).norm() < 0.25 * full.norm()


def test_autocast_in_a_whole_run(there: Path) -> None:
    for name, more in (("jump", "selection.jump=exact"), ("linear", CHECKPOINTING)):
        less = ["training.precision=bf16", "training.epochs=1", "selection.rounds=1"]
        recipe = check_recipe(parse(words.RECIPE), [*less, more])
        assert run_select(recipe, there / name)["kept"] > 0


def test_checkpointing_does_not_go_with_the_exact_jump(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert curate("text.yaml", "--out", "out", *sets(CHECKPOINTING, "selection.jump=exact")) == 2
    assert "training.checkpointing: selection.jump exact goes" in capsys.readouterr().err


def test_autocast_is_for_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path)
    assert curate("text.yaml", *sets("training.precision=bf16", "training.dtype=float64")) == 2
    assert "training.precision: bf16 is for dtype float32" in capsys.readouterr().err
