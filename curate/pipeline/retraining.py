"""Training from scratch on some rows, judged by halves of the target and stopped where it is best.

Every run starts as the recipe's does and takes at most as many steps. It is measured on the
judging rows now and then, and ends when they have not got better for a while, as a user would
stop it. All of them are stopped by the same rule.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
from curate.pipeline.nearness import Nearness, nearness, nearness_passes
from curate.runtime.journal import Journal
from curate.runtime.large import large, pieces, touched
from curate.runtime.ranks import Ranks, everywhere
from curate.runtime.savepoints import Savepoints
from curate.selection import Array
from curate.selection.ranking import SURE
from curate.trajectory import Step, Task, forward_step

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


HALVES = ("measured", "before")


@dataclass(frozen=True)
class Plain:
    """Training on everything, to the end.

    measured: on each of the judging halves; before: of the model that it starts with, none where
    that has no finite loss. losses: of every candidate in the steps that have it, before their
    update, mean, per term, shape (N,). early: those of the run's first half. target: losses of the
    target's rows in that half, offered as candidates are but not trained on, means, shape (M,) or
    shorter. near: by the model at its end; None where it tells nothing.
    """

    measured: list[Measured]
    before: list[Measured]
    losses: Array
    early: Array
    target: Array
    near: Nearness | None

    def evidence(self) -> dict[str, Array]:
        """Of every candidate, higher for better, see `combine`."""
        low = large(len(self.losses), np.float64)
        for part in pieces(len(low)):
            low[part] = -self.losses[part]
        return {"losses": low} | ({} if self.near is None else {"nearness": self.near.candidates})

    def unlike(self) -> float:
        """About which share of the candidates is not of the target's kind.

        By losses; by nearness where these differ by no more than chance. A model places rows that
        it was trained on otherwise than others, a little: by nearness it takes twice as much.
        """
        found = _unlike(self.early[None], self.target)
        if found or self.near is None:
            return found
        return _unlike(self.near.candidates, self.near.target, sign=-1, sure=2 * SURE)


def _unlike(candidates: Array, target: Array, sign: int = 1, sure: float = SURE) -> float:
    """Which share of the candidates is unlike the target, by values that are higher for those.

    If a share p has higher values than the target's rows have and the others are like those,
    F_candidates(t) >= (1 - p) F_target(t) at every value t, with F the distribution functions: so
    p is at least 1 - F_candidates / F_target, here at the best of a few quantiles. Candidates are
    trained on and the target is not, which makes it less. 0 where candidates differ in other ways,
    and where chance may make the difference.

    candidates: the values of each, in K ways, shape (K, N). target: of its rows, shape (M,). sign:
    -1 where both are lower instead. sure: standard errors that are no chance.
    """
    quantiles = np.linspace(0.4, 0.9, 11)
    at, below = np.quantile(sign * target, quantiles)[:, None], np.zeros(len(quantiles))
    for part in pieces(candidates.shape[1]):
        for values in candidates:
            below += (sign * values[part] <= at).sum(axis=1)
    found = 1 - below / candidates.size / quantiles
    chance = sure * np.sqrt((1 - quantiles) / quantiles / len(target))
    return float(min(found.max(), 0.5)) if np.any(found > chance) else 0.0


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
            one, other = ([*map(Measured.restored, saved.pop(name))] for name in HALVES)
            near = saved.pop("near")
            return Plain(one, other, **saved, near=near and Nearness(**near))
        job, watch = self.job, _Watch(self.job)
        task, _, state = job.start(job.recipe.training.seed)
        before = list[Measured]()
        with suppress(NonFiniteError):  # then nothing is to be compared with
            before += [self._measure(task, jury, state.theta, 0) for jury in self.juries]
        measured = self._run(job.data.examples, None, self.juries, watch)
        near = nearness(job, task, watch.theta)
        more = self._look(self.juries) + nearness_passes(job)
        measured = [replace(half, steps=half.steps + more) for half in measured]
        plain = Plain(measured, before, *watch.means(), near)
        if savepoints is not None:
            values: dict[str, Any] = {
                name: [half.saved() for half in getattr(plain, name)] for name in HALVES
            }
            values["near"] = near and near._asdict()
            savepoints.offer(lambda: {**vars(plain), **values}, due=True)
        return plain

    def _run(
        self,
        examples: SourceExamples,
        rows: Array | None,
        juries: Sequence[int],
        watch: "_Watch | None" = None,
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


class _Watch:
    """Losses of candidates on the way, and those of target rows, which are not trained on.

    In the run's first half target rows are offered as candidates are, once an epoch in random
    order, so that their losses can be compared: losses fall within an epoch, too.

    theta: where the run has come to.
    """

    theta: torch.Tensor

    def __init__(self, job: Job) -> None:
        count = len(job.data.examples)
        self._half = max(1.0, job.total_steps() / 2)
        self._sizes = job.data.tokens
        self._sums, self._seen = large((2, count), np.float64), large((2, count), np.int32)
        self._sets = [*job.data.validation.values()]
        self._places = [
            (k, row) for k, examples in enumerate(self._sets) for row in range(len(examples))
        ]
        self._epoch = max(1, job.total_steps() // job.recipe.training.epochs)
        self._random = np.random.default_rng(job.recipe.data.seed)
        self._ahead: list[Array] = []
        self._target_sums, self._target_seen = np.zeros((2, len(self._places)))

    def see(
        self, task: Task, theta: torch.Tensor, t: int, step: Step, losses: torch.Tensor
    ) -> None:
        """Note step t, from theta on: its candidates' losses there, and some target rows'."""
        rows, values, early = step.rows.numpy(), losses.double().cpu().numpy(), t < self._half
        for k in (0, 1) if early else (0,):
            np.add.at(self._sums[k], rows, values)
            np.add.at(self._seen[k], rows, 1)
            touched(2 * len(rows))
        if early:
            self._offer(task, theta, step)

    def means(self) -> tuple[Array, Array, Array]:
        """Mean losses: of candidates, shape (N,), over all steps and over the first half;
        and of the target rows that had their turn.
        """
        losses, early = (large(self._sums.shape[1], np.float64) for _ in range(2))
        for part in pieces(len(losses)):
            means = self._sums[:, part] / np.maximum(self._seen[:, part], 1)
            if self._sizes is not None:
                means /= self._sizes[part]
            losses[part] = means[0]
            early[part] = np.where(self._seen[1, part] > 0, means[1], means[0])
        turned = self._target_seen > 0
        return losses, early, self._target_sums[turned] / self._target_seen[turned]

    def _offer(self, task: Task, theta: torch.Tensor, step: Step) -> None:
        """Note the losses of the target rows whose turn it is, at theta, in training mode."""
        if not self._ahead:
            order = self._random.permutation(len(self._places))
            self._ahead = np.array_split(order, self._epoch)
        turn = np.sort(self._ahead.pop(0))
        with (
            task.model.at(theta, training=True) as module,
            torch.no_grad(),
            task.seeded(step.seed),
        ):
            for k, examples in enumerate(self._sets):
                places = [place for place in turn if self._places[place][0] == k]
                if places:
                    rows = torch.tensor([self._places[place][1] for place in places])
                    batch = examples.batch(rows, task.model.device)
                    losses = task.objective.losses(module, batch) / task.objective.sizes(batch)
                    self._target_sums[places] += losses.double().cpu().numpy()
                    self._target_seen[places] += 1


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
