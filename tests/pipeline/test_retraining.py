"""Training again, stopped where the target is best: against plain torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from curate.models import BUILTIN_MODELS, Classification
from curate.pipeline.job import Job, prepare
from curate.pipeline.retraining import Measured, Retraining, juries, training_steps
from curate.recipe import check_recipe
from curate.runtime.journal import Journal
from curate.runtime.savepoints import Savepoints
from tests.pipeline.test_worth import CPU, recipe


def plain_torch(job: Job) -> tuple[list[float], np.ndarray]:
    """Validation loss of the second half of the target after each of 12 parts, by torch.optim.

    And the mean loss of every candidate before its updates.
    """
    _, _, state = job.start(job.recipe.training.seed)
    module = BUILTIN_MODELS["mlp"]((6,), 2, hidden=(32,), activation="gelu")
    torch.nn.utils.vector_to_parameters(state.theta, module.parameters())
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=1e-2, weight_decay=job.recipe.training.optimizer.weight_decay
    )
    examples, (half,) = job.data.examples, job.data.halves[1].validation.values()
    x, y = examples.all_features(), examples.labels
    curve, sums = [], np.zeros(len(y))
    steps = job.steps(job.recipe.training.seed)
    for part in np.array_split(np.arange(len(steps)), 12):
        for t in part:
            rows = steps[t].rows
            losses = F.cross_entropy(module(x[rows]), y[rows], reduction="none")
            sums[rows.numpy()] += losses.detach().numpy()
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
        with torch.no_grad():
            curve.append(float(F.cross_entropy(module(half.all_features()), half.labels)))
    return curve, sums / job.recipe.training.epochs


def test_training_on_everything_is_what_torch_does_stopped_where_it_is_best(
    tmp_path: Path,
) -> None:
    job = prepare(check_recipe(recipe(tmp_path, 0.3)), CPU)
    found = Retraining(job, lambda: None).plain()
    curve, losses = plain_torch(job)
    second = found.measured[juries(job).index(1)]
    assert second.loss == pytest.approx(min(curve), rel=1e-4)
    assert second.last == pytest.approx(curve[-1], rel=1e-4)
    np.testing.assert_allclose(found.watched.losses, losses, rtol=1e-3, atol=1e-4)


def test_a_guess_at_the_share_to_drop_goes_with_what_was_made_wrong(tmp_path: Path) -> None:
    guesses = []
    for wrong in (0.0, 0.2, 0.4):
        job = prepare(check_recipe(recipe(tmp_path, wrong, seed=2)), CPU)
        guesses.append(Retraining(job, lambda: None).plain().watched.unlike())
    assert guesses[0] == 0
    assert guesses[1] == pytest.approx(0.2, abs=0.05)
    assert 0.1 < guesses[2] < 0.5  # where nearly half is wrong, most losses look alike


def test_a_retraining_is_not_done_again(tmp_path: Path) -> None:
    job = prepare(check_recipe(recipe(tmp_path, 0.3)), CPU)
    ticks: list[int] = []
    rows = np.arange(100)
    for expected in (True, False):
        journal = Journal(tmp_path / "journal", "a run")
        before = len(ticks)
        retraining = Retraining(job, lambda: ticks.append(1), journal)
        (found,) = retraining.on(job.data.examples, rows, [1])
        assert (len(ticks) > before) is expected
        assert retraining.steps == found.steps > 0


def test_training_on_everything_is_not_done_again(tmp_path: Path) -> None:
    job = prepare(check_recipe(recipe(tmp_path, 0.3)), CPU)
    ticks: list[int] = []
    done = []
    for _ in range(2):
        savepoints = Savepoints(tmp_path / "everything", "a run")
        done.append(Retraining(job, lambda: ticks.append(1)).plain(savepoints))
    assert len(ticks) == job.total_steps()
    one, other = done
    for name in ("losses", "early", "target", "margins"):
        np.testing.assert_array_equal(getattr(one.watched, name), getattr(other.watched, name))
    assert one.watched.near is not None
    assert other.watched.near is not None
    for here, there in zip(one.watched.near, other.watched.near, strict=True):
        np.testing.assert_array_equal(here, there)
    assert [half.saved() for half in one.measured] == [half.saved() for half in other.measured]


@pytest.mark.parametrize(("epochs", "looks"), [(12, 12), (2, 6), (1, 5)])
def test_steps_count_what_measuring_takes_half_of_training_unless_that_is_too_few(
    tmp_path: Path, epochs: int, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(check_recipe(recipe(tmp_path, 0.3, trained=epochs)), CPU)
    rows = {True: 0, False: 0}
    call = Classification.outputs

    def counted(self: Classification, model: Any, batch: Any) -> Any:
        rows[torch.is_grad_enabled()] += len(batch["label"])
        return call(self, model, batch)

    monkeypatch.setattr(Classification, "outputs", counted)
    found, *_ = Retraining(job, lambda: None).plain().measured
    offered = 240 * ((job.total_steps() + 1) // 2) // 15  # target rows, in the run's first half
    measured, near = (1 + looks) * 240, 480 + 240  # once before; all rows, once
    assert (
        rows[False] - offered - 8 == measured + near
    )  # and four times two, to find the last layer
    assert rows[True] == epochs * 480
    assert found.steps == pytest.approx((rows[True] + (measured + near) / 3) / 32)
    training = found.steps - (240 + near) / 3 / 32
    assert training_steps(job, len(juries(job))) == pytest.approx(training)


def test_all_are_stopped_by_one_rule_and_none_in_its_first_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(check_recipe(recipe(tmp_path, 0.3)), CPU)
    curve = [5, 6, 6, 6, 4, 3, 4, 4, 4, 1, 1, 2]
    for rows in (None, np.arange(400)):
        losses = iter(curve)

        def measure(*_: Any, losses: Any = losses) -> Measured:
            return Measured(np.array([float(next(losses))]), np.ones(1), {})

        monkeypatch.setattr(Retraining, "_measure", measure)
        (found,) = Retraining(job, lambda: None)._run(job.data.examples, rows, [0])
        assert found.loss == 3
        assert len([*losses]) == (0 if rows is None else 3)
