"""What a step takes, counted by hand for a perceptron."""

import torch
from torch import nn

from curate.models import FlatModel
from curate.trajectory import Task, counting, graph_size
from curate.trajectory.measure import step_flops
from tests import tiny


def test_flops_are_those_of_the_matrix_products() -> None:
    # 4 -> 5 -> 3, batch of 6: forward 2 * 6 * (4 * 5 + 5 * 3), three times for training
    task = tiny.task()
    assert step_flops(task, tiny.steps(1)[0]) == 3 * 2 * 6 * (20 + 15)
    assert not any(layer._forward_hooks for layer in task.model.module.modules())


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_without_matrices_every_parameter_counts_for_every_row() -> None:
    model = FlatModel(Scale(), dtype=torch.float64)
    task = Task(model, tiny.task().objective, tiny.examples())
    assert step_flops(task, tiny.steps(1)[0]) == 3 * 2 * 4 * 6


def test_storages_are_counted_once_and_not_those_that_are_held() -> None:
    x, weight = torch.randn(6, 4), torch.randn(4, 5, requires_grad=True)
    with counting(weight) as sizes:
        hidden = (x @ weight).tanh()  # saves x, and its own output
        hidden * hidden[:]  # the same storage
    assert sum(sizes.values()) == x.nbytes + hidden.nbytes


def test_the_graph_is_that_of_one_chunk() -> None:
    """Rows of 8 bytes: features 4, before and after the bend 5 each, log-probabilities 3, ..."""
    task = tiny.task()
    theta, (step,) = task.model.read(), tiny.steps(1)
    (small,) = tiny.steps(1, micro=2)
    whole, part = graph_size(task, theta, step), graph_size(task, theta, small)
    assert whole > 6 * 8 * (4 + 5 + 5 + 3)
    assert 2 * part < whole < 4 * part
    nothing = step.keep(torch.arange(0))
    assert graph_size(task, theta, nothing) == 0
