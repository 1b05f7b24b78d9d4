"""Is the choice any good? Retrain from scratch on it, and on what others would keep."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from curate.datasets import Examples
from curate.errors import NonFiniteError, UserError
from curate.influence import mean_metrics
from curate.pipeline.job import Job
from curate.pipeline.score import Chosen, choose, cut, nothing_kept
from curate.runtime.journal import Journal
from curate.runtime.progress import Phases
from curate.runtime.ranks import everywhere
from curate.runtime.resume import Unfinished
from curate.selection import Array
from curate.selection.budget import Budget
from curate.trajectory import replay


@dataclass(frozen=True)
class Row:
    """One way of choosing, retrained with several seeds.

    kept: rows, and tokens where they are counted; means over the seeds.
    metrics: name -> one value per seed, on the test set.
    noise_left: share of kept rows whose label is planted noise; None without noise.
    """

    name: str
    kept: int
    tokens: int | None
    metrics: dict[str, list[float]]
    noise_left: float | None

    def summary(self) -> dict[str, Any]:
        """Plain values, for provenance and `--json`."""
        return {
            "trained_on": self.name,
            "rows": self.kept,
            **({} if self.tokens is None else {"tokens": self.tokens}),
            "noise_left": self.noise_left,
            **{
                name: {"mean": mean(values), "std": spread(values), "values": values}
                for name, values in self.metrics.items()
            },
        }


def evaluate(
    job: Job, chosen: Chosen, phases: Phases, unfinished: Unfinished | None = None
) -> list[Row]:
    """Train from scratch on what was kept and on each alternative, once per seed.

    Every run takes the same number of optimizer steps. The random subset is
    drawn anew for each seed, of the size that was kept; in tokens, to the nearest row, if the
    budget is. What `unfinished` knows already is not done again.

    Raises:
        UserError: an alternative keeps nothing.
    """
    section = job.recipe.evaluation
    assert section is not None
    assert job.data.test is not None
    count = len(job.data.examples)
    kept: dict[str, list[Array]] = {
        job.recipe.selection.policy: [chosen.choice.kept] * len(section.seeds)
    }
    name: str
    for name in section.against:
        if name == "everything":
            kept[name] = [np.ones(count, dtype=bool)] * len(section.seeds)
        elif name == "random":
            kept[name] = [_random_subset(job, chosen.choice.kept, seed) for seed in section.seeds]
        elif name != job.recipe.selection.policy:
            other = choose(job, name, phases, unfinished)
            if job.recipe.selection.keep.auto:
                same = Budget(count=int(chosen.choice.kept.sum()))
                other = replace(other, choice=cut(job, other.scores.score, same))
            if (why_nothing := nothing_kept(job, other)) is not None:
                raise UserError(f"evaluation.against: {name}: {why_nothing}.")
            kept[name] = [other.choice.kept] * len(section.seeds)
    journal = None if unfinished is None else unfinished.journal()
    rows = []
    with phases.phase("retrain", len(kept) * len(section.seeds) * job.total_steps()) as tick:
        for name, masks in kept.items():
            runs = [
                _on_test(job, mask, seed, tick, journal)
                for mask, seed in zip(masks, section.seeds, strict=True)
            ]
            metrics = {metric: [run[metric] for run in runs] for metric in runs[0]}
            size = round(mean(int(mask.sum()) for mask in masks))
            rows.append(Row(name, size, _tokens(job, masks), metrics, _noise_left(job, masks)))
    return rows


def retrain(
    job: Job, kept: Array, seed: int, on: Mapping[str, Examples], tick: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Train from scratch on the rows where `kept`, shape (N,), and measure on other examples.

    Returns:
        for each of `on`, the mean loss and the objective's metrics.

    Raises:
        NonFiniteError: a loss is not a number in the end.
    """
    task, rule, state = job.start(seed)
    steps = job.steps(seed, torch.from_numpy(np.flatnonzero(kept)))
    final = replay(task, rule, state, steps, tick)
    found = {
        name: mean_metrics(task.model, task.objective, examples, final.theta)
        for name, examples in on.items()
    }
    for name, metrics in found.items():
        if not np.isfinite(metrics["loss"]):
            raise NonFiniteError(
                f"retraining with seed {seed} on {int(kept.sum())} rows ends in a loss of "
                f"{metrics['loss']} on {name}; lower the learning rate."
            )
    return found


def _on_test(
    job: Job, kept: Array, seed: int, tick: Callable[[], None], journal: Journal | None
) -> dict[str, float]:
    """What retraining on the rows where `kept` measures on the test set, if need be once more."""
    assert job.data.test is not None
    key = (hashlib.blake2b(np.packbits(kept).tobytes(), digest_size=16).hexdigest(), seed)
    known: dict[str, float] | None = None if journal is None else journal.find(*key)
    if everywhere(job.ranks, known is not None):
        assert known is not None
        for _ in range(job.total_steps()):
            tick()
        return known
    found = retrain(job, kept, seed, {"test": job.data.test}, tick)["test"]
    if journal is not None:
        journal.enter(*key, value=found)
    return found


def spread(values: list[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def _random_subset(job: Job, kept: Array, seed: int) -> Array:
    """As much as was kept, at random, shape (N,)."""
    values = np.empty(len(kept))
    values[np.random.default_rng([seed, 1]).permutation(len(kept))] = -np.arange(len(kept))
    tokens = job.data.tokens
    if job.recipe.selection.keep.tokens is None or tokens is None:
        return Budget(count=int(kept.sum())).choose(values).kept
    return Budget(tokens=float(tokens[kept].sum() / tokens.sum())).choose(values, None, tokens).kept


def _tokens(job: Job, masks: list[Array]) -> int | None:
    tokens = job.data.tokens
    return None if tokens is None else round(mean(int(tokens[mask].sum()) for mask in masks))


def _noise_left(job: Job, masks: list[Array]) -> float | None:
    if job.data.noisy is None:
        return None
    noisy = job.data.noisy.numpy()
    return mean(float(noisy[mask].mean()) for mask in masks)
