"""The mean over all rows kept, from means of what each process has."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from curate.integrations.evening import Evening, factors, handed
from curate.integrations.spread import Spread
from curate.integrations.training import LiveTraining
from curate.runtime.ranks import ALONE
from curate.runtime.ranks.base import Alone
from tests.integrations.loop import net

SIZES = np.array([1.0, 2, 3, 4, 5, 6, 7, 8])
WEIGHTS = np.array([1.0, 0, 1, 1, 0, 1, 0, 0])


def test_who_keeps_nothing_is_given_one_row() -> None:
    assert handed(np.array([False, True, True])).tolist() == [1, 2]
    assert handed(np.array([False, False])).tolist() == [0]


def found(mean_over: str, weights: Any, rank: int, *, weighed: bool = False) -> Any:
    """Of two processes with two batches of two rows each."""
    training: Any = SimpleNamespace(ranks=Alone(rank=rank, size=2), mean_over=mean_over)
    decided: Any = SimpleNamespace(
        judged=SimpleNamespace(scores=SimpleNamespace(sizes=[torch.from_numpy(SIZES)])),
        weights=[weights],
    )
    (made,) = factors(training, Spread([[2, 2], [2, 2]], 2, rank), decided, weighed=weighed)
    return made


@pytest.mark.parametrize("mean_over", ["batch", "process", "step"])
def test_the_mean_is_over_all_that_is_kept(mean_over: str) -> None:
    """By a gradient per row, put together as the loop and its processes do."""
    gradients = np.random.default_rng(0).normal(size=8)
    given = [np.arange(8)[2 * i + handed(WEIGHTS[2 * i : 2 * i + 2] > 0)] for i in range(4)]
    divisors = {
        "batch": [4 * SIZES[rows].sum() for rows in given],
        "process": [2 * SIZES[np.concatenate(given[i : i + 2])].sum() for i in (0, 0, 2, 2)],
        "step": [SIZES[np.concatenate(given)].sum()] * 4,
    }[mean_over]
    scaled = np.concatenate([found(mean_over, WEIGHTS, rank) for rank in range(2)])
    loop = sum(
        factor * gradients[rows].sum() / divisor
        for factor, rows, divisor in zip(scaled, given, divisors, strict=True)
    )
    kept = WEIGHTS > 0
    assert loop == pytest.approx(gradients[kept].sum() / SIZES[kept].sum())
    assert scaled[3] == 0


def test_weights_are_for_means_over_rows() -> None:
    uneven: Any = SimpleNamespace(ranks=Alone(rank=0, size=2), mean_over="batch")
    decided: Any = SimpleNamespace(
        judged=SimpleNamespace(scores=SimpleNamespace(sizes=[torch.from_numpy(SIZES[:4])])),
        weights=[np.array([2.0, 0, 1, 1])],
    )
    (made,) = factors(uneven, Spread([[3], [1]], 1, 0), decided, weighed=True)
    assert made.tolist() == [2 * 3 / 4]


@pytest.mark.parametrize(
    ("mean_over", "weights", "expected"),
    [
        ("batch", WEIGHTS, [8 * 2 / 14, 6 * 2 / 14]),  # of the sizes 1, 3, 4 and 6
        ("batch", np.ones(8), [1, 1]),  # as plain training has it
        ("batch", np.array([1.0, 0, 1, 1, 0, 0, 0, 0]), [2, 0]),
        ("step", WEIGHTS, [1, 1]),
        ("process", WEIGHTS, [1, 1]),
    ],
)
def test_one_process_evens_out_its_batches_of_a_step(
    mean_over: str, weights: Any, expected: list[float]
) -> None:
    training: Any = SimpleNamespace(ranks=ALONE, mean_over=mean_over)
    decided: Any = SimpleNamespace(
        judged=SimpleNamespace(scores=SimpleNamespace(sizes=[torch.from_numpy(SIZES)])),
        weights=[weights],
    )
    (made,) = factors(training, Spread([[5, 3]], 2, 0), decided, weighed=False)
    assert made.tolist() == pytest.approx(expected)


def test_each_pass_of_the_loop_has_a_factor_and_others_have_none() -> None:
    model = net(dropout=0.0)
    training = LiveTraining(model, torch.optim.SGD(model.parameters(), lr=0.1))
    evening, p = Evening(training), model[3].bias

    def back() -> float:
        p.grad = None
        model(torch.ones(1, 6)).sum().backward()
        return float(p.grad[0])

    evening.begin([1.0, 1.0])
    assert back() == 1
    evening.begin([2.0, 0.0, 3.0])
    with training.simulated(None):
        assert back() == 1
    assert [back(), back(), back(), back()] == [2, 0, 3, 3]
    evening.stop()
    assert back() == 1


def test_a_row_that_does_not_count_may_have_any_loss() -> None:
    model = net(dropout=0.0)
    evening = Evening(LiveTraining(model, torch.optim.SGD(model.parameters(), lr=0.1)))
    evening.begin([0.0])
    model(torch.full((1, 6), torch.nan)).sum().backward()
    assert all(not p.grad.any() for p in model.parameters())
    evening.stop()
