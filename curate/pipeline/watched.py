"""What a training on everything says of each candidate: losses and margins on its way, and where
it leaves the row.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from curate.models.features import last_layer
from curate.pipeline.job import Job
from curate.pipeline.nearness import Nearness, nearness
from curate.runtime.large import large, pieces, touched
from curate.runtime.ranks import everywhere
from curate.selection import Array
from curate.selection.ranking import SURE
from curate.trajectory import Step, Task


@dataclass(frozen=True)
class Watched:
    """What was seen of candidates and target rows.

    losses: of every candidate in the steps that have it, before their update, mean, per term, shape
    (N,). early: those of the run's first half. target: losses of the target's rows in that half,
    offered as candidates are but not trained on, means, shape (M,) or shorter. margins: of the
    label's logit over the highest other, as losses; None where the model's logits are not known.
    near: by the model at the run's end; None where it tells nothing.
    """

    losses: Array
    early: Array
    target: Array
    margins: Array | None
    near: Nearness | None

    def evidence(self) -> dict[str, Array]:
        """Of every candidate, higher for better, see `combine`: margins, or losses without any."""
        if self.margins is not None:
            found = {"margins": self.margins}
        else:
            found = {"losses": large(len(self.losses), np.float64)}
            for part in pieces(len(self.losses)):
                found["losses"][part] = -self.losses[part]
        return found | ({} if self.near is None else {"nearness": self.near.candidates})

    def saved(self) -> dict[str, Any]:
        """Plain values and arrays, which `restored` reads."""
        return {**vars(self), "near": self.near and self.near._asdict()}

    @classmethod
    def restored(cls, plain: Mapping[str, Any]) -> Self:
        """The object that was `saved`."""
        return cls(**{**plain, "near": plain["near"] and Nearness(**plain["near"])})

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


class Watch:
    """Notes losses and margins of candidates, and losses of target rows, which are not trained on.

    In the run's first half target rows are offered as candidates are, once an epoch in random
    order, so that their losses can be compared: losses fall within an epoch, too.

    theta: where the run has come to.
    """

    theta: Tensor

    def __init__(self, job: Job, task: Task) -> None:
        self._job, count = job, len(job.data.examples)
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
        self._margins = None if job.data.classes is None else _Margins(job, task)

    def passing(self) -> AbstractContextManager[object]:
        """A block in which a step is taken, that `see` is then told of."""
        return nullcontext() if self._margins is None else self._margins.passing()

    def see(self, task: Task, theta: Tensor, t: int, step: Step, losses: Tensor) -> None:
        """Note step t, from theta on: its candidates' losses there, and some target rows'."""
        rows, values, early = step.rows.numpy(), losses.double().cpu().numpy(), t < self._half
        for k in (0, 1) if early else (0,):
            np.add.at(self._sums[k], rows, values)
            np.add.at(self._seen[k], rows, 1)
            touched(2 * len(rows))
        if self._margins is not None and not self._margins.see(task, step, losses):
            self._margins = None
        if early:
            self._offer(task, theta, step)

    def watched(self, task: Task) -> Watched:
        """What was seen, once the run is over."""
        losses, early = (large(self._sums.shape[1], np.float64) for _ in range(2))
        margins = None if self._margins is None else self._margins.sums
        for part in pieces(len(losses)):
            seen = np.maximum(self._seen[:, part], 1)
            means = self._sums[:, part] / seen
            if self._sizes is not None:
                means /= self._sizes[part]
            losses[part] = means[0]
            early[part] = np.where(self._seen[1, part] > 0, means[1], means[0])
            if margins is not None:
                margins[part] /= seen[0]
        turned = self._target_seen > 0
        target = self._target_sums[turned] / self._target_seen[turned]
        return Watched(losses, early, target, margins, nearness(self._job, task, self.theta))

    def _offer(self, task: Task, theta: Tensor, step: Step) -> None:
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


class _Margins:
    """Margins of candidates by the logits that the last layer gives, where these give the losses.

    sums: over steps, shape (N,).
    """

    def __init__(self, job: Job, task: Task) -> None:
        assert job.data.classes is not None
        self._classes, self.sums = job.data.classes, large(len(job.data.examples), np.float64)
        first = job.data.examples.batch(torch.arange(min(2, len(self.sums))), task.model.device)
        name = last_layer(task.model, task.objective, first)
        self._layer = None if name is None else task.model.module.get_submodule(name)
        self._left, self._sure = list[Tensor](), False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """A block in which what leaves the layer is noted."""
        self._left = []
        if self._layer is None:
            yield
            return

        def note(*call: Any) -> None:
            self._left.append(call[-1].detach())

        handle = self._layer.register_forward_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def see(self, task: Task, step: Step, losses: Tensor) -> bool:
        """Note a step with these losses, shape (n,); False if the logits do not give them."""
        places = [torch.arange(chunk.start, chunk.stop) for chunk in task.chunks(step)]
        labels = [torch.from_numpy(self._classes[step.rows[own].numpy()]) for own in places]
        labels = [own.to(losses.device) for own in labels]
        if not self._sure:
            given = [losses[own.to(losses.device)] for own in places]
            self._sure = everywhere(task.ranks, self._fit(labels, given))
        if self._sure:
            margins = [losses.new_zeros(0)]  # of a rank that has no rows
            for logits, own in zip(self._left, labels, strict=True):
                of = logits.double().gather(1, own[:, None])
                rest = logits.double().scatter(1, own[:, None], -torch.inf)
                margins.append(of[:, 0] - rest.amax(dim=1))
            rows = step.rows.numpy()
            np.add.at(self.sums, rows, task.join(torch.cat(margins), step).cpu().numpy())
            touched(len(rows))
        return self._sure

    def _fit(self, labels: Sequence[Tensor], losses: Sequence[Tensor]) -> bool:
        """Whether the losses of every chunk are the cross-entropy of what was noted."""
        return len(self._left) == len(labels) and all(
            logits.ndim == 2
            and len(logits) == len(own)
            and logits.shape[1] > max(1, int(own.max()))
            and torch.allclose(
                F.cross_entropy(logits.double(), own, reduction="none"), given, rtol=1e-3, atol=1e-4
            )
            for logits, own, given in zip(self._left, labels, losses, strict=True)
        )
