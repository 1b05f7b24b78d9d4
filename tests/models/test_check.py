"""What is refused before a long run, and what is not."""

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from curate.datasets import TensorExamples
from curate.errors import ModelError
from curate.models import Classification, FlatModel, require_trainable
from curate.models.hidden import LONGEST
from tests import tiny


class Net(nn.Module):
    """A linear layer, the forward pass around it, and a counter."""

    bank: torch.Tensor
    calls: torch.Tensor
    passes: int

    def __init__(self, forward: Callable[["Net", torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("bank", torch.zeros(LONGEST + 1))
        self._around = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._around(self, x)


def counting(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.calls += 1
    output: torch.Tensor = net.linear(x)
    return output


def storing(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.bank += 1
    return counting(net, x)


def tracking(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Eval mode uses what training passes leave behind, in place."""
    output: torch.Tensor = net.linear(x)
    if net.training:
        net.calls += output.detach().mean()
        return output
    return output * (1 + net.calls)


def centering(net: Net, x: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = net.linear(x - x.mean(dim=0))
    return output


def detached(net: Net, x: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = net.linear(x)
    return output.detach()


def annealing(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.passes = getattr(net, "passes", 0) + 1
    output: torch.Tensor = net.linear(x) / (1 + 0.9**net.passes)
    return output


def averaging(net: Net, x: torch.Tensor) -> torch.Tensor:
    """A running mean, assigned anew."""
    output: torch.Tensor = net.linear(x)
    net.calls = 0.9 * net.calls + output.detach().mean()
    return output * (1 + net.calls)


def drawing(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Noise that no seed reaches."""
    output: torch.Tensor = net.linear(x)
    return output * (1 + os.urandom(1)[0] + os.urandom(1)[0] / 256)


def centering_in_training(net: Net, x: torch.Tensor) -> torch.Tensor:
    return centering(net, x) if net.training else net.linear(x)


def tempering_in_training(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Depends on how many rows there are, not on which."""
    output: torch.Tensor = net.linear(x)
    return output / len(x) if net.training else output


def dropping_and_centering(net: Net, x: torch.Tensor) -> torch.Tensor:
    output = centering_in_training(net, x)
    return torch.dropout(output, 0.5, net.training)


def dropping_and_leaning_on_the_next(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Where masks differ by the shape of a batch, only batches of one shape can be compared."""
    output: torch.Tensor = net.linear(x + x.roll(-1, dims=0) if net.training else x)
    return torch.dropout(output, 0.5, net.training)


def weighing_by_place(net: Net, x: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = net.linear(x) * torch.arange(1, len(x) + 1)[:, None]
    return output


class Reduced(Classification):
    def losses(self, model: Any, batch: Any) -> torch.Tensor:
        return super().losses(model, batch).mean()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Net(storing), "bank changes in the forward pass, a state"),
        (Net(tracking), "calls changes in the forward pass, and the loss by it"),
        (Net(centering), "depends on who shares its batch"),
        (Net(annealing), "passes changes in the forward pass, and the loss by it"),
        (Net(averaging), "calls changes in the forward pass, and the loss by it"),
        (Net(drawing), "all that draws random numbers being seeded alike"),
        (Net(centering_in_training), "loss in training depends on who shares its batch"),
        (Net(tempering_in_training), "loss in training depends on who shares its batch"),
        (Net(dropping_and_centering), "loss in training depends on who shares its batch"),
        (Net(dropping_and_leaning_on_the_next), "loss in training depends on who shares its batch"),
        (Net(weighing_by_place), "depends on who shares its batch"),
        (Net(detached), "does not depend on any trainable parameter"),
        (nn.Linear(5, 3), "cannot be trained on this data: RuntimeError"),
        (nn.Linear(4, 2), "cannot be trained on this data: IndexError"),
    ],
    ids=[
        *(
            "buffer",
            "tracking",
            "mixing",
            "counter",
            "assigned",
            "noise",
            "in training",
            "by count",
        ),
        *("with dropout", "neighbours", "by place", "detached", "shape", "classes"),
    ],
)
def test_a_model_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        require_trainable(
            FlatModel(module.train(), dtype=torch.float64), Classification(), unlucky()
        )
    assert "\n" not in str(caught.value)


def unlucky() -> TensorExamples:
    """The first two examples have labels 2: out of range for two classes."""
    examples = tiny.examples()
    assert examples.labels is not None
    return examples.take(torch.nonzero(examples.labels == 2).squeeze(1))


def test_outputs_are_counted_even_where_the_first_rows_do_not_need_them() -> None:
    model, examples = FlatModel(nn.Linear(4, 3), dtype=torch.float64), tiny.examples()
    require_trainable(model, Classification(), examples, classes=3)
    with pytest.raises(ModelError, match="puts out 3 numbers for each example, but there are 4 "):
        require_trainable(model, Classification(), examples, classes=4)


def test_an_objective_that_reduces_is_refused() -> None:
    model = FlatModel(tiny.module(), dtype=torch.float64)
    with pytest.raises(ModelError, match=r"one loss per example, shape \(2,\), but got \(\)"):
        require_trainable(model, Reduced(), tiny.examples())


@pytest.mark.parametrize("count", [1, 24])
def test_dropout_is_accepted_and_nothing_is_changed(count: int) -> None:
    module = tiny.module(0.5).double().train()
    model, before = FlatModel(module), torch.get_rng_state()
    theta = model.read()
    require_trainable(model, Classification(), tiny.examples(count))
    assert torch.equal(model.read(), theta)
    assert torch.equal(torch.get_rng_state(), before)
    assert module.training
    assert all(p.grad is None for p in module.parameters())


def test_what_is_only_counted_is_accepted_and_left_as_it_was() -> None:
    def counted(net: Net, x: torch.Tensor) -> torch.Tensor:
        net.passes += 1
        random.random()
        return counting(net, x)

    module = Net(counted)
    module.passes = 0
    state = random.getstate()
    require_trainable(FlatModel(module, dtype=torch.float64), Classification(), tiny.examples())
    assert module.passes == 0
    assert module.calls.tolist() == [0]
    assert random.getstate() == state
