"""Gradients example by example are those of examples alone, or there is an error that says why."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curate.errors import ModelError
from curate.models import FlatModel
from curate.trajectory import Task, example_gradients, gradient
from tests import tiny


@pytest.mark.parametrize("most", [1, 2, 4, 100])
@pytest.mark.parametrize("micro", [0, 4])
def test_they_are_those_of_examples_alone(most: int, micro: int) -> None:
    task = tiny.task(grouped=True)
    theta, (step,) = task.model.read(), tiny.steps(1, micro=micro)
    losses = gradient(task, theta, step).losses
    places, parts = zip(*example_gradients(task, theta, step, losses, most), strict=True)
    assert [i for place in places for i in range(6)[place]] == list(range(6))
    assert max(map(len, parts)) <= most
    for i, ours in enumerate(torch.cat(parts)):
        alone = gradient(task, theta, step.keep(torch.tensor([i])))
        torch.testing.assert_close(ours, alone.mean, rtol=1e-12, atol=1e-15)


def test_dropout_is_that_of_the_batch_where_a_chunk_goes_at_once() -> None:
    task = tiny.task(dropout=0.3)
    theta, (step,) = task.model.read(), tiny.steps(1)
    losses, before = gradient(task, theta, step).losses, torch.get_rng_state()
    assert len(list(example_gradients(task, theta, step, losses, 6))) == 1
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ModelError, match=r"the loss is .* where the batch had .* more memory"):
        list(example_gradients(task, theta, step, losses, 1))


class Looks(nn.Module):
    """Decides by the values that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x if x.sum() > 0 else -x)


def test_a_model_that_cannot_be_vectorized_is_refused_in_one_line() -> None:
    task = Task(FlatModel(Looks(), dtype=torch.float64), tiny.task().objective, tiny.examples())
    theta, (step,) = task.model.read(), tiny.steps(1)
    losses = gradient(task, theta, step).losses
    with pytest.raises(ModelError, match=r"torch.func.vmap\): .*; use jump linear") as caught:
        list(example_gradients(task, theta, step, losses, 6))
    assert "\n" not in str(caught.value)
