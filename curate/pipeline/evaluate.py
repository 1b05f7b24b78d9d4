"""Is the choice any good? Retrain from scratch on it, and on what others would keep."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from curate.datasets import Examples
from curate.errors import NonFiniteError, NothingKeptError
from curate.influence import mean_metrics
from curate.pipeline.job import Job
from curate.pipeline.retraining import once
from curate.pipeline.score import Chosen, choose, cut, require_kept
from curate.runtime.journal import Journal
from curate.runtime.parts import Parts
from curate.runtime.progress import Phases
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
    job: Job, chosen: Chosen, phases: Phases, unfinished: Unfinished | None, parts: Parts
) -> list[Row]:
    """Train from scratch on what was kept and on each alternative, once per seed.

    Every run takes the same number of optimizer steps. The random subset is
    drawn anew for each seed, of the size that was kept; in tokens, to the nearest row, if the
    budget is. Retrainings that `unfinished` has are not done again. An alternative that keeps
    nothing and a retraining that diverges are left out, and noted in `parts`.
    """
    section, policy = job.recipe.compared(), job.recipe.selection.policy
    assert section is not None
    kept, seeds = chosen.choice.kept, section.seeds
    masks: dict[str, list[Array]] = {policy: [kept] * len(seeds)}
    name: str
    for name in section.against:
        if name == "everything":
            masks[name] = [np.ones(len(kept), dtype=bool)] * len(seeds)
        elif name == "random":
            masks[name] = [_random_subset(job, kept, seed) for seed in seeds]
        elif name != policy:
            part = f"evaluation against {name}"
            other = parts.attempt(part, lambda: _kept_by(job, name, kept, phases, unfinished))  # noqa: B023
            masks |= {} if other is None else {name: [other] * len(seeds)}
    journal = None if unfinished is None else unfinished.journal()
    rows = []
    with phases.phase("retrain", len(masks) * len(seeds) * job.total_steps()) as tick:
        for name, by_seed in masks.items():
            runs = [
                _on_test(job, mask, seed, tick, journal)
                for mask, seed in zip(by_seed, seeds, strict=True)
            ]
            for seed, run in zip(seeds, runs, strict=True):
                if isinstance(run, str):
                    parts.note(f"evaluation of {name} with seed {seed}", run, again=True)
            ended = [run for run in runs if not isinstance(run, str)]
            if not ended:
                continue
            metrics = {metric: [run[metric] for run in ended] for metric in ended[0]}
            size = round(mean(int(mask.sum()) for mask in by_seed))
            rows.append(Row(name, size, _tokens(job, by_seed), metrics, _noise_left(job, by_seed)))
    return rows


def _kept_by(
    job: Job, policy: str, kept: Array, phases: Phases, unfinished: Unfinished | None
) -> Array:
    """What another policy keeps, shape (N,): as many rows where the recipe names no budget."""
    try:
        other = choose(job, policy, phases, unfinished)
        require_kept(job, other.scores.score, other.choice)
    except NothingKeptError as error:
        raise NothingKeptError(f"evaluation.against: {policy}: {error}") from error
    if job.recipe.selection.keep.auto:
        return cut(job, other.scores.score, Budget(count=int(kept.sum()))).kept
    return other.choice.kept


def retrain(
    job: Job, kept: Array, seed: int, on: Mapping[str, Examples], tick: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Train from scratch on the rows where `kept`, shape (N,), and measure on other examples.

    Returns:
        for each of `on`, the mean loss and the objective's metrics.

    Raises:
        NonFiniteError: a loss is not finite in the end.
    """
    task, rule, state = job.start(seed)
    steps = job.steps(seed, torch.from_numpy(np.flatnonzero(kept)))
    final = replay(task, rule, state, steps, tick)
    metrics = {
        name: mean_metrics(task.model, task.objective, examples, final.theta)
        for name, examples in on.items()
    }
    for name, means in metrics.items():
        if not np.isfinite(means["loss"]):
            raise NonFiniteError(
                f"retraining with seed {seed} on {int(kept.sum())} rows ends in a loss of "
                f"{means['loss']} on {name}; lower the learning rate."
            )
    return metrics


def _on_test(
    job: Job, kept: Array, seed: int, tick: Callable[[], None], journal: Journal | None
) -> dict[str, float] | str:
    """Metrics on the test set of retraining on the rows where `kept`, from the journal if there.

    Why, if it diverges, which is entered, too: nobody has to see it again.
    """
    test = job.data.test
    assert test is not None

    def tick_all() -> None:
        for _ in range(job.total_steps()):
            tick()

    def measure() -> dict[str, float] | str:
        try:
            return retrain(job, kept, seed, {"test": test}, tick)["test"]
        except NonFiniteError as error:
            return str(error)

    metrics: dict[str, float] | str = once(
        job.ranks,
        journal,
        (hashlib.blake2b(np.packbits(kept).tobytes(), digest_size=16).hexdigest(), seed),
        measure,
        tick_all,
    )
    return metrics


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
