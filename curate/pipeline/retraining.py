"""Training from scratch on some rows, judged by halves of the target and stopped where it is best.

Every run starts as the recipe's does and takes at most as many steps. It is measured on the
judging rows now and then, and ends when they have not got better for a while, as a user would
stop it. All of them are stopped by the same rule.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from curate.datasets import SourceExamples
from curate.errors import NonFiniteError
from curate.influence import row_metrics
from curate.influence.cost import FORWARD
from curate.pipeline.candidates import Candidates
from curate.pipeline.job import Job
from curate.pipeline.label_guesses import Guesses, guess
from curate.pipeline.nearness import nearness_passes
from curate.pipeline.watched import Watch, Watched
from curate.runtime.journal import Journal
from curate.runtime.ranks import Ranks, everywhere
from curate.runtime.savepoints import Savepoints
from curate.selection import Array
from curate.trajectory import Task, forward_step

MOST, LEAST, SHARE = 12, 5, 0.5
"""How often a run is measured at most, and at least where that takes more than this share of it."""
PATIENCE, WAIT = 0.25, 2
"""After this share of the measurements, and so many, without a better one it ends, if half of it is
over: what begins slowly, as by a warm-up, is not stopped by the noise of its first steps."""
SMALL = 1000
"""Target rows below which both halves may judge, in turn."""


@dataclass(frozen=True)
class Measured:
    """A retrained model on one half of the target, where its loss there was lowest.

    losses: of every row, per term, shape (m,). shares: of every row in the mean over the
    targets, shape (m,), sum 1. metrics: the objective's own, means. last: the loss where the run
    ended. steps: that it took, for all that it was measured on, and what measuring took, in steps.
    guesses: at the labels of rows that it was asked about.
    """

    losses: Array
    shares: Array
    metrics: dict[str, float]
    last: float = 0.0
    steps: float = 0.0
    guesses: Guesses | None = None

    @property
    def loss(self) -> float:
        """The mean loss."""
        return float(self.shares @ self.losses)

    def saved(self) -> dict[str, Any]:
        """Plain values, which `restored` reads."""
        arrays = {"losses": self.losses.tolist(), "shares": self.shares.tolist()}
        guesses = self.guesses and self.guesses.saved()
        return asdict(self) | arrays | {"guesses": guesses}

    @classmethod
    def restored(cls, plain: Mapping[str, Any]) -> "Measured":
        """The object that was `saved`."""
        arrays = {name: np.array(plain[name]) for name in ("losses", "shares")}
        guesses = plain.get("guesses") and Guesses.restored(plain["guesses"])
        return cls(**{**plain, **arrays, "guesses": guesses})


@dataclass(frozen=True)
class Plain:
    """Training on everything, to the end.

    measured: on each of the judging halves; before: of the model that it starts with, none where
    that has no finite loss. watched: what it says of every candidate.
    """

    measured: list[Measured]
    before: list[Measured]
    watched: Watched

    def saved(self) -> dict[str, Any]:
        """Plain values and arrays, which `restored` reads."""
        lists = {"measured": self.measured, "before": self.before}
        plain = {name: [half.saved() for half in halves] for name, halves in lists.items()}
        return {**plain, "watched": self.watched.saved()}

    @classmethod
    def restored(cls, plain: Mapping[str, Any]) -> "Plain":
        """The object that was `saved`."""
        one, other = ([*map(Measured.restored, plain[name])] for name in ("measured", "before"))
        return cls(one, other, Watched.restored(plain["watched"]))


@dataclass
class Retraining:
    """Trains from scratch; what is in its journal is not done again.

    tick: called after every step. parts: two of the target, its halves by default. juries: those
    of them that judge. steps: taken so far by `on`, including those of earlier processes, and what
    measuring took.
    """

    job: Job
    tick: Callable[[], None]
    journal: Journal | None = None
    parts: Sequence[Candidates] = ()
    juries: Sequence[int] = ()
    steps: float = 0.0

    def __post_init__(self) -> None:
        self.parts = self.parts or self.job.data.halves
        self.juries = self.juries or juries(self.job)

    def on(
        self,
        examples: SourceExamples,
        rows: Array | None,
        juries: Sequence[int],
        ask: Array | None = None,
    ) -> list[Measured]:
        """Train on some rows of some examples, measured for each of the juries.

        Args:
            rows: of the examples. If None all of them and to the end, which is done once.
            ask: candidates, ascending, whose labels the first jury's best model is to guess.

        Raises:
            NonFiniteError: it ends in a loss that is not finite.
        """
        every = b"all" if rows is None else np.ascontiguousarray(rows, np.int64).data
        name = hashlib.blake2b(every, digest_size=16)
        name.update(f"{len(examples)} {[*juries]}".encode())
        plain = once(
            self.job.ranks,
            self.journal,
            ("worth", name.hexdigest()),
            lambda: [jury.saved() for jury in self._run(examples, rows, juries, ask=ask)],
        )
        measured = [Measured.restored(values) for values in plain]
        self.steps += measured[0].steps
        return measured

    def plain(self, savepoints: Savepoints | None = None) -> Plain:
        """Train on everything, for all steps, and note the candidates' losses on the way.

        Raises:
            NonFiniteError: it ends in a loss that is not finite.
        """
        if savepoints is not None and (saved := savepoints.newest()) is not None:
            return Plain.restored(saved)
        job = self.job
        task, _, state = job.start(job.recipe.training.seed)
        watch, before = Watch(job, task), list[Measured]()
        with suppress(NonFiniteError):  # then nothing is to be compared with
            before += [self._measure(task, jury, state.theta, 0) for jury in self.juries]
        measured = self._run(job.data.examples, None, self.juries, watch)
        more = self._look(self.juries) + nearness_passes(job)
        measured = [replace(half, steps=half.steps + more) for half in measured]
        plain = Plain(measured, before, watch.watched(task))
        if savepoints is not None:
            savepoints.offer(plain.saved, due=True)
        return plain

    def _run(
        self,
        examples: SourceExamples,
        rows: Array | None,
        juries: Sequence[int],
        watch: Watch | None = None,
        ask: Array | None = None,
    ) -> list[Measured]:
        """Train once, on all rows if None, and then to the end; a `watch` sees every step."""
        job, seed = self.job, self.job.recipe.training.seed
        task, rule, state = job.start(seed)
        task = Task(task.model, task.objective, examples, task.ranks)
        steps = job.steps(seed, None if rows is None else torch.from_numpy(rows))
        count, total = len(examples) if rows is None else len(rows), len(steps)
        best, theta = dict[int, Measured](), state.theta
        stale, looks = dict.fromkeys(juries, 0), looks_of(job)
        patience, ended = max(WAIT, PATIENCE * looks), set[int]()
        ends = {(k + 1) * (total // looks) + min(k + 1, total % looks) for k in range(looks)}
        for t, step in enumerate(steps):
            before, done = state.theta, t + 1
            with nullcontext() if watch is None else watch.passing():
                state, losses = forward_step(task, rule, state, step)
            if watch is not None:
                watch.see(task, before, t, step, losses)
                watch.theta = state.theta
            self.tick()
            if done not in ends:
                continue
            now = {jury: self._measure(task, jury, state.theta, count) for jury in juries}
            for jury, measured in now.items():
                better = jury not in best or measured.loss < best[jury].loss
                better &= jury not in ended
                best[jury] = measured if better else best[jury]
                if ask is not None and better and jury == juries[0]:
                    theta = state.theta
                stale[jury] = 0 if better else stale[jury] + 1
                if stale[jury] >= patience and 2 * done >= total:
                    ended.add(jury)  # alike for training on everything, which goes on all the same
            if rows is not None and len(ended) == len(juries):
                for _ in range(total - done):  # a bar is not to wait for them
                    self.tick()
                break
        if ask is not None:
            guesses = guess(task, theta, ask, self.parts[juries[0]])
            best[juries[0]] = replace(best[juries[0]], guesses=guesses)
        took = done + self._look(juries) * sum(end <= done for end in ends)
        return [replace(best[jury], last=now[jury].loss, steps=took) for jury in juries]

    def _look(self, juries: Sequence[int]) -> float:
        """What measuring a model for these juries takes, in steps."""
        return look_passes(self.job, sum(self.parts[jury].target_rows for jury in juries))

    def _measure(self, task: Task, part: int, theta: torch.Tensor, rows: int) -> Measured:
        """Measure a model at theta, trained on so many rows, on a part of the target."""
        data, ranks = self.parts[part], self.job.ranks
        weights = np.array([target.weight for target in data.targets])
        losses, shares, means = [], [], dict[str, float]()
        for target, weight in zip(data.targets, weights / weights.sum(), strict=True):
            about = target.about(task.objective)
            metrics = row_metrics(task.model, about, target.examples, theta)
            metrics = {name: ranks.same(values) for name, values in metrics.items()}
            sizes, summed = metrics.pop("size"), metrics.pop("loss")
            own = target.shares(summed, sizes)
            losses.append((summed / sizes).numpy())
            shares.append(weight * own.numpy())
            for name, values in metrics.items():
                means[name] = means.get(name, 0.0) + weight * float(values.mean())
            if len(data.targets) > 1:  # a gain on one may be a loss on another
                means[f"loss, {target.name}"] = float(own @ (summed / sizes))
        measured = Measured(np.concatenate(losses), np.concatenate(shares), means)
        if not np.isfinite(measured.loss):
            raise NonFiniteError(
                f"retraining on {rows} rows ends in a loss of {measured.loss} on the target; "
                "lower the learning rate."
            )
        return measured


def look_passes(job: Job, rows: int) -> float:
    """What measuring a model on so many rows takes, in steps of the recipe's batches."""
    return FORWARD * rows / min(job.recipe.training.batch_size, len(job.data.examples))


def looks_of(job: Job) -> int:
    """How often trainings of a job are measured.

    All alike, so that none of them has more places to stop at.
    """
    total = job.total_steps()
    within = SHARE * total / look_passes(job, job.data.target_rows)
    return min(total, MOST, max(LEAST, int(within)))


def training_steps(job: Job, halves: int = 1) -> float:
    """Steps of one training to its end, and what measuring it on halves of the target takes."""
    look = look_passes(job, job.data.target_rows) * halves / 2
    return job.total_steps() + looks_of(job) * look


def juries(job: Job) -> list[int]:
    """The halves of the target that may judge what the other chose: both of a small target."""
    return [1, 0] if job.data.target_rows < SMALL else [1]


def once(
    ranks: Ranks,
    journal: Journal | None,
    key: tuple[int | str, ...],
    measure: Callable[[], Any],
    on_repeat: Callable[[], None] = lambda: None,
) -> Any:
    """The plain values that the journal has under a key, or those of `measure`, then entered.

    `on_repeat` is called if the journal has them.
    """
    values = None if journal is None else journal.find(*key)
    if everywhere(ranks, values is not None):
        on_repeat()
        return values
    values = measure()
    if journal is not None:
        journal.enter(*key, value=values)
    return values
