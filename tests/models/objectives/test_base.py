"""Every objective that a recipe can name gives one loss and one size per example."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curate.models import load_objective, losses_and_metrics
from curate.models.pretrained import HEADS
from curate.recipe.names import OBJECTIVES

COUNT = 5


def batch_for(name: str) -> tuple[Any, dict[str, Tensor]]:
    """A model with five outputs and a batch for it."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(0, 5, (COUNT,), generator=generator)
    features, layer = torch.randn(COUNT, 4, generator=generator), nn.Linear(4, 5)
    if name == "regression":
        return layer, {"features": features, "label": torch.randn(COUNT, 5, generator=generator)}
    if name == "classification":
        return layer, {"features": features, "label": classes}
    labels, table = classes, nn.Embedding(9, 5)
    ids = torch.randint(0, 9, (COUNT, 7), generator=generator)
    if name == "preference":
        pairs = {"input_ids": ids.view(COUNT, 1, 7).repeat(1, 2, 1) % 9}
        pairs["input_ids"][:, 1] = (pairs["input_ids"][:, 1] + 1) % 5
        pairs["input_ids"] %= 5
        ones = torch.ones_like(pairs["input_ids"])
        known = dict.fromkeys(("ref_chosen_logps", "ref_rejected_logps"), torch.zeros(COUNT))
        pairs |= {"attention_mask": ones, "completion_mask": ones, **known}
        return (lambda input_ids, **_: SimpleNamespace(logits=table(input_ids))), pairs
    if name == "causal_lm":
        labels = (ids % 5).masked_fill(ids > 6, -100)
        return (lambda ids: SimpleNamespace(logits=table(ids))), {"ids": ids, "labels": labels}
    return (lambda ids: SimpleNamespace(logits=table(ids).mean(1))), {"ids": ids, "labels": labels}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_example_has_its_own_loss_and_size(name: str) -> None:
    model, batch = batch_for(name)
    objective = load_objective(OBJECTIVES[name].path)
    losses, sizes = objective.losses(model, batch), objective.sizes(batch)
    assert losses.shape == sizes.shape == (COUNT,)
    assert losses.requires_grad
    assert (losses >= 0).all()
    assert (sizes >= 1).all()
    assert all(values.shape == (COUNT,) for values in objective.metrics(model, batch).values())
    order = torch.tensor([3, 0])
    some = {key: value[order] for key, value in batch.items()}
    torch.testing.assert_close(objective.losses(model, some), losses[order])
    assert torch.equal(objective.sizes(some), sizes[order])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_metrics_come_of_one_pass_and_are_those_of_a_subclass(name: str) -> None:
    model, batch = batch_for(name)
    objective, passes = load_objective(OBJECTIVES[name].path), 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        return model(*args, **kwargs)

    losses, metrics = losses_and_metrics(objective, counting, batch)
    assert passes == 1
    assert torch.equal(losses, objective.losses(model, batch))
    expected = objective.metrics(model, batch)
    assert metrics.keys() == expected.keys()
    assert all(torch.equal(metrics[key], expected[key]) for key in metrics)

    class Twice(type(objective)):  # type: ignore[misc]
        def losses(self, model: Any, batch: Any) -> Tensor:
            return 2 * super().losses(model, batch)

    class Unmeasured(type(objective)):  # type: ignore[misc]
        def metrics(self, *_: Any) -> dict[str, Tensor]:
            return {}

    for kind, factor, names in ((Twice, 2, expected.keys()), (Unmeasured, 1, set())):
        own = kind.__new__(kind)
        vars(own).update(vars(objective))
        found, metrics = losses_and_metrics(own, model, batch)
        torch.testing.assert_close(found, factor * losses)
        assert metrics.keys() == names


def test_objectives_on_text_have_a_head() -> None:
    assert set(HEADS) == {name for name, facts in OBJECTIVES.items() if facts.reads == "text"}
