"""What targets may be about, against formulas written out."""

import pytest
import torch

from curate.errors import ModelError
from curate.models import Classification, Regression, SequenceClassification, load_goal
from curate.models.objectives.goal import BUILT_IN, focal, margin
from curate.recipe.target import GOALS

LOGITS = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 1, 0])


def test_margin_is_the_others_less_the_own() -> None:
    for logits, label, value in zip(LOGITS, LABELS, margin(LOGITS, LABELS), strict=True):
        others = sum(float(z.exp()) for k, z in enumerate(logits) if k != label)
        assert float(value) == pytest.approx(
            torch.tensor(others).log().item() - float(logits[label])
        )


def test_focal_is_cross_entropy_times_how_wrong_squared() -> None:
    p = LOGITS.softmax(dim=1)[torch.arange(5), LABELS]
    torch.testing.assert_close(focal(LOGITS, LABELS), -((1 - p) ** 2) * p.log())


def test_recipes_know_the_names_of_all() -> None:
    assert {*GOALS} == BUILT_IN.keys()


def test_both_can_be_differentiated_where_a_row_is_surely_right() -> None:
    logits = torch.tensor([[90.0, -90.0]], requires_grad=True)
    for function in (margin, focal):
        (slope,) = torch.autograd.grad(function(logits, torch.tensor([0])).sum(), logits)
        assert slope.isfinite().all()


def test_a_goal_has_the_metrics_of_training_beside_it() -> None:
    batch = {"features": LOGITS, "label": LABELS}
    goal = load_goal("margin", Classification())
    torch.testing.assert_close(goal.losses(lambda x: x, batch), margin(LOGITS, LABELS))
    metrics = goal.metrics(lambda x: x, batch)
    torch.testing.assert_close(
        metrics["training loss"], Classification().losses(lambda x: x, batch)
    )
    assert metrics["accuracy"].tolist() == (LOGITS.argmax(dim=1) == LABELS).double().tolist()


def test_texts_have_them_too() -> None:
    class Output:
        logits = LOGITS

    batch = {"labels": LABELS}
    goal = load_goal("focal", SequenceClassification())
    torch.testing.assert_close(goal.losses(lambda **_: Output, batch), focal(LOGITS, LABELS))


def test_numbers_have_no_margin() -> None:
    goal = load_goal("margin", Regression())
    with pytest.raises(ModelError, match=r"target.loss: margin reads the logits of a classifier"):
        goal.losses(lambda x: x, {"features": LOGITS, "label": LABELS})
