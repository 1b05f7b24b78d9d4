"""What is made for speed or memory in training does not change a score."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from curate.datasets import TensorExamples
from curate.errors import ModelError
from curate.influence import Target, score_window
from curate.models import Classification, FlatModel, flat
from curate.rules import AdamW, initial_state
from curate.trajectory import Step, Task, record

ROWS = 12


class Photographs(nn.Module):
    """Convolutions, a norm and a linear layer, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv2d(4, 4, 3, groups=2)
        )
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).mean(dim=(2, 3)))
        return out


def photographs() -> nn.Module:
    torch.manual_seed(0)
    return Photographs().double()


def influences(module: nn.Module, dtype: torch.dtype = torch.float64, horizon: int = 3) -> Tensor:
    """Of the rows of a window, shape (horizon, ROWS)."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 3, (ROWS,), generator=generator)
    data = TensorExamples(x, y, torch.arange(ROWS), dtype=dtype)
    task = Task(FlatModel(module), Classification(), data)
    step = Step(rows=torch.arange(ROWS), weights=torch.ones(ROWS), lrs=(0.01,), seed=0)
    steps = [replace(step, seed=k) for k in range(horizon)]
    made = record(
        task, AdamW(), initial_state(AdamW(), task.model.read()), steps, snapshots=horizon
    )
    scores = score_window(task, AdamW(), made, [Target("target", data)])
    return torch.stack([own[0] for own in scores.influences])


def whole(module: nn.Module) -> nn.Module:
    module.compile(backend="aot_eager")
    return module


def part(module: nn.Module) -> nn.Module:
    module.body.compile(backend="aot_eager")
    return module


def wrapped(module: nn.Module) -> nn.Module:
    found: nn.Module = torch.compile(module, backend="aot_eager")
    return found


@pytest.mark.parametrize("compiled", [whole, part, wrapped])
def test_compiled(compiled: Callable[[nn.Module], nn.Module]) -> None:
    """Also by one that has compiled code already."""
    module = compiled(photographs())
    module(torch.zeros(2, 3, 8, 8, dtype=torch.float64)).sum().backward()
    assert torch.equal(influences(module), influences(photographs()))


def test_channels_last() -> None:
    module = photographs().to(memory_format=torch.channels_last)
    layout = module.body[0].weight.stride()
    expected = influences(photographs())
    assert (influences(module) - expected).norm() <= 1e-9 * expected.norm()
    assert module.body[0].weight.stride() == layout


def test_weights_in_half_precision_are_refused_beyond_one_step() -> None:
    module = photographs().to(torch.bfloat16)
    assert influences(module, torch.bfloat16, horizon=1).isfinite().all()
    with pytest.raises(ModelError, match="keep them in float32"):
        influences(module, torch.bfloat16, horizon=2)


def test_own_settings_of_products_come_back() -> None:
    """TF32 as the caller has set it, in the old way and in the new."""
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    try:
        for mine in (True, False):
            products.allow_tf32 = mine
            with flat._products(not mine):
                assert products.allow_tf32 is not mine
            assert products.allow_tf32 is mine
    finally:
        products.allow_tf32 = before
