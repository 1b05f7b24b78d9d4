"""Preferences in a recipe: losses as TRL has them, influences against leaving out, flips found."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from curate.errors import DataError
from curate.influence import score_window, target_losses
from curate.pipeline.job import Job, prepare
from curate.recipe import check_recipe
from curate.recipe.load import parse
from curate.rules import initial_state
from curate.trajectory import forward_step, record
from tests.integrations.trl_tiny import llama, texts, tokenizer, trainer
from tests.job import curate

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL uses what goes away
CPU = torch.device("cpu")
RECIPE = """
data:
  train: pairs.parquet
  validation: clean.parquet
  columns: {prompt: prompt, chosen: chosen, rejected: rejected}
model: {pretrained: tiny}
objective: preference
training: {epochs: 2, batch_size: 16, beta: 0.3, optimizer: {kind: adamw, lr: 5e-3}}
selection: {horizon: 4, keep: {fraction: 0.8}, judge: false}
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    llama().save_pretrained("tiny")
    tokenizer().save_pretrained("tiny")
    texts("preference", 96, 0.2).to_parquet("pairs.parquet")
    texts("preference", 48, seed=5).to_parquet("clean.parquet")
    return tmp_path


def job(*overrides: str) -> Job:
    return prepare(check_recipe(parse(RECIPE), [*overrides]), CPU)


def test_losses_are_those_of_trl(there: Path) -> None:
    """After some steps, so that the model is no longer its reference."""
    prepared = job()
    task, _, state = prepared.start(0)
    data = texts("preference", 96, 0.2)
    made: Any = trainer(there / "dpo", "preference", data, beta=0.3, max_steps=3)
    made.train()
    theta = torch.cat(
        [dict(made.model.named_parameters())[n].detach().flatten() for n in task.model.names]
    )
    assert not torch.equal(theta, state.theta)
    for row in range(6):
        batch = task.examples.batch(torch.tensor([row]), CPU)
        with task.model.at(theta, training=False) as module, torch.no_grad():
            ours = float(task.objective.losses(module, batch))
        inputs = made.data_collator([made.train_dataset[row]])
        made.model.eval()
        with torch.no_grad():
            assert ours == pytest.approx(float(made.compute_loss(made.model, inputs)), abs=1e-5)


def test_pairs_start_at_the_reference(there: Path) -> None:
    prepared = job("training.precision=bf16")
    assert prepared.first_losses().tolist() == pytest.approx([np.log(2)] * 16, abs=1e-2)
    exactly = job()
    assert exactly.first_losses().tolist() == pytest.approx([np.log(2)] * 16, abs=1e-5)
    assert exactly.data.tokens is None  # a pair counts once


def test_influences_are_those_of_leaving_a_pair_out(there: Path) -> None:
    small = "training.optimizer={kind: sgd, lr: 0.05}"
    prepared = job(small, "training.dtype=float64", "training.batch_size=8")
    task, rule, _ = prepared.start(0)
    state = initial_state(rule, task.model.read())
    step = prepared.steps(0)[0]
    targets = prepared.data.targets

    def loss(rows: torch.Tensor) -> float:
        after, _ = forward_step(task, rule, state, step.keep(rows))
        return float(target_losses(task.model, task.objective, targets, after.theta))

    everything = loss(torch.arange(8))
    left_out = [
        loss(torch.tensor([k for k in range(8) if k != row])) - everything for row in range(8)
    ]
    scores = score_window(task, rule, record(task, rule, state, [step], snapshots=2), targets)
    found = scores.influences[0][0].numpy()
    assert np.abs(found - left_out).max() < 0.02 * np.abs(left_out).max()


def test_swapped_preferences_are_found(there: Path) -> None:
    assert curate("recipe.yaml", "--out", "out") == 2  # no recipe yet
    Path("recipe.yaml").write_text(RECIPE)
    assert curate("recipe.yaml", "--out", "out") == 0
    scores = pl.read_parquet("out/scores.parquet").sort("row")["score"].to_numpy()
    bad = np.array(texts("preference", 96, 0.2)["bad"])
    order = scores.argsort().argsort()
    found = (order[~bad][:, None] > order[bad][None]).mean()
    assert found > 0.9
    assert curate("recipe.yaml", "--out", "out", "--resume") == 0


def test_a_pair_without_an_answer_is_told(there: Path) -> None:
    with pytest.raises(DataError, match="rows have no token to learn in the 2 of"):
        job("data.max_length=2")
    assert len(job("data.max_length=6", "data.min_length=3").data.examples) == 96
