"""What a training on everything says of rows: margins against torch, and where there are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from curate.models import BUILTIN_MODELS
from curate.pipeline.job import Job, prepare
from curate.pipeline.retraining import Retraining
from curate.pipeline.watched import Watched
from curate.recipe import check_recipe
from tests.pipeline.test_worth import CPU, recipe


class Doubled(nn.Module):
    """Logits that are not what leaves the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.body(x)


def watched(plan: Any) -> tuple[Job, Watched]:
    job = prepare(check_recipe(plan), CPU)
    return job, Retraining(job, lambda: None).plain().watched


def margins_of_torch(job: Job) -> np.ndarray:
    """The mean over steps of the label's logit less the highest other, by torch.optim."""
    _, _, state = job.start(job.recipe.training.seed)
    module = BUILTIN_MODELS["mlp"]((6,), 2, hidden=(32,), activation="gelu")
    nn.utils.vector_to_parameters(state.theta, module.parameters())
    decay = job.recipe.training.optimizer.weight_decay
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=decay)
    x, y = job.data.examples.all_features(), job.data.examples.labels
    assert y is not None
    sums = np.zeros(len(y))
    for step in job.steps(job.recipe.training.seed):
        logits, own = module(x[step.rows]), y[step.rows]
        sign = 1 - 2 * (own == 0).float()
        sums[step.rows.numpy()] += (sign * (logits[:, 1] - logits[:, 0])).detach().numpy()
        optimizer.zero_grad()
        F.cross_entropy(logits, own).backward()
        optimizer.step()
    return sums / job.recipe.training.epochs


@pytest.mark.parametrize("micro_batch", [None, 10])
def test_margins_are_means_over_the_steps_of_a_row(tmp_path: Path, micro_batch: int | None) -> None:
    plan: Any = recipe(tmp_path, 0.3)
    plan["training"]["micro_batch"] = micro_batch
    job, found = watched(plan)
    assert found.margins is not None
    np.testing.assert_allclose(found.margins, margins_of_torch(job), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found.evidence()["margins"], found.margins)


def test_where_the_last_layers_output_does_not_give_the_losses_these_are_what_counts(
    tmp_path: Path,
) -> None:
    plan: Any = recipe(tmp_path, 0.3) | {"model": {"factory": f"{__name__}:Doubled"}}
    _, found = watched(plan)
    assert found.margins is None
    assert [*found.evidence()] == ["losses", "nearness"]
    np.testing.assert_array_equal(found.evidence()["losses"], -found.losses)
