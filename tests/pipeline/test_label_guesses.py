"""Guesses at labels are the model's probabilities, whatever the objective."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from curate.models import (
    Classification,
    FunctionObjective,
    SequenceClassification,
    class_losses,
)
from curate.pipeline import label_guesses
from curate.pipeline.build import choose_device
from curate.pipeline.job import Job, prepare
from curate.pipeline.label_guesses import Guesses, guess, lowest
from curate.recipe import load_recipe
from curate.runtime.ranks import ALONE
from tests import tiny


@pytest.fixture
def job(here: Path) -> Job:
    return prepare(load_recipe("recipe.yaml", ()), choose_device("cpu", ALONE))


def test_they_are_the_classes_that_the_model_finds_likeliest(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_guesses, "AT_ONCE", 5)
    task, _, state = job.start(0)
    rows = np.array([3, 4, 9, 40, 41, 42, 70])
    found = guess(task, state.theta, rows, job.data)
    examples, target = job.data.examples, job.data.validation["validation"]
    with task.model.at(state.theta, training=False) as module, torch.no_grad():
        chances = module(examples.all_features()).double().softmax(dim=1)[torch.from_numpy(rows)]
        own = module(target.all_features()).double().softmax(dim=1)
    given = examples.labels[torch.from_numpy(rows)]
    assert found.labels.tolist() == chances.argmax(dim=1).tolist()
    np.testing.assert_allclose(found.probabilities, chances.max(dim=1).values, rtol=1e-6)
    np.testing.assert_allclose(found.own, chances[range(7), given], rtol=1e-6)
    assert found.sure == pytest.approx(float(own[range(24), target.labels].mean()), rel=1e-6)
    again = Guesses.restored(json.loads(json.dumps(found.saved())))
    assert again.table(job.data).equals(found.table(job.data))


def test_a_label_is_suspected_if_another_is_as_likely_as_the_targets_own(job: Job) -> None:
    assert job.data.examples.labels is not None
    given = job.data.examples.labels[:4].numpy()
    labels = np.where([True, True, False, True], 1 - given, given)
    chances = np.array([0.95, 0.6, 0.99, 0.9])
    table = Guesses(np.arange(4), labels, chances, 1 - chances, 0.9).table(job.data)
    assert table["is_label_issue"].to_list() == [True, False, False, True]
    assert table["row"].to_list() == job.data.examples.rows[:4].tolist()
    words = np.array(["down", "up"])
    assert table["given_label"].to_list() == words[given].tolist()
    assert table["predicted_label"].to_list() == words[labels].tolist()


def test_an_objective_of_ones_own_is_asked_class_by_class() -> None:
    batch = {"features": torch.randn(6, 4), "label": torch.randint(0, 3, (6,))}
    module, known = tiny.module(), Classification()
    own = FunctionObjective(known.losses, "mine:loss")
    fast, slow = (class_losses(objective, module, batch, 3) for objective in (known, own))
    torch.testing.assert_close(fast, slow)
    given = fast.gather(1, batch["label"][:, None])[:, 0]
    torch.testing.assert_close(given, known.losses(module, batch))


def test_a_model_of_transformers_is_asked_once_for_all_classes() -> None:
    calls, logits = list[int](), torch.randn(6, 5)

    def model(rows: torch.Tensor) -> SimpleNamespace:
        calls.append(len(rows))
        return SimpleNamespace(logits=logits[rows])

    batch = {"rows": torch.arange(6), "labels": torch.randint(0, 3, (6,))}
    found = class_losses(SequenceClassification(), model, batch, 3)
    assert calls == [6]
    own = FunctionObjective(
        lambda m, b: cross_entropy(m(b["rows"]).logits[:, :3], b["labels"], reduction="none"),
        "mine:loss",
    )
    torch.testing.assert_close(found, class_losses(own, model, batch, 3))


def test_of_many_rows_those_that_score_least_are_asked_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = np.random.default_rng(0).normal(size=50)
    kept = scores > 0
    assert lowest(scores, kept).tolist() == np.flatnonzero(scores <= 0).tolist()
    monkeypatch.setattr(label_guesses, "MOST", 7)
    assert lowest(scores, kept).tolist() == sorted(np.argsort(scores)[:7].tolist())
    assert len(lowest(scores, np.ones(50, bool))) == 0
