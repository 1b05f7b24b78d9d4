"""Look-ahead in a training loop of one's own: wrap the data loader, change nothing else."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curate.datasets import BatchExamples, take
from curate.influence import Target, mean_metrics
from curate.integrations.future import future_learning_rates
from curate.models import FlatModel, Objective, as_objective, probe
from curate.policies import Array, Budget, LookAhead
from curate.rules import LiveOptimizer, from_torch, unwrap
from curate.trajectory import Step, Task
from curate.windows import Judge, Judged


@dataclass
class WindowReport:
    """What one window came to.

    steps: K. offered, kept: candidates. predicted: change of the mean target
    loss that the first-order picture expects of the dropping. realised: what it
    was, measured when the loop has trained on the window and asks for the next;
    None until then. seconds: spent choosing.
    """

    steps: int
    offered: int
    kept: int
    predicted: float
    target_loss: float
    seconds: float
    realised: float | None = None

    @property
    def ratio(self) -> float | None:
        """Realised over predicted: near 1 where the linear picture holds."""
        if self.realised is None or self.predicted == 0:
            return None
        return self.realised / self.predicted


class LookAheadLoader:
    """Iterate this in place of a data loader: each batch is cut to what is worth training on.

    At each window it draws K batches, takes the optimizer as it stands (moments,
    step counts, param groups, learning rates), simulates the K steps, scores
    every candidate against the targets where they end, and yields the K batches
    cut to what is kept. The loop around it does its own forward, backward and
    step, unaware.

        loader = LookAheadLoader(loader, model, optimizer, losses, targets, horizon=4)
        for batch in loader:
            ...

    Nothing of the caller's changes: not the model, its mode or its gradients,
    not the optimizer, the scheduler or the RNG. With `keep=1.0` training is bit
    for bit what it was.

    Cost per step, in gradients of one batch: R (1 + 4) for R rounds, and R + 1
    passes over the targets per window of K steps. The simulated steps are not
    the loop's own, so training itself comes on top, on the smaller batches.
    Memory beside the loop's: K states (at most `snapshots`), one batch's graph.

    Args:
        loader: yields batches of any structure whose tensors have the examples first.
        model, optimizer: the ones that are trained; SGD, Adam or AdamW of torch.optim.
        objective: (model, batch) -> one training loss per example, shape (n,); the
            loop is taken to train on their mean.
        targets: what to be good at: a batch, a list or loader of batches, or
            several by name. They are kept in memory.
        horizon: K, steps to look ahead.
        keep: share of every batch that is kept.
        rounds: see `LookAhead`.
        group_by: batch -> a label per example, shape (n,); each gets the same share.
        scheduler: stepped once per batch by the loop; read, never stepped.
        clip_norm: the norm that the loop clips gradients to.
        micro_batch: candidates per simulated forward pass; a whole batch if None.
        snapshots: states kept at once on the way through a window.
        seed: of the simulated steps' dropout.

    Raises:
        UserError: at construction, for an optimizer or model that cannot be
            followed, with the remedy. While iterating, NonFiniteError names
            step and parameter.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        model: nn.Module,
        optimizer: Any,
        objective: Objective | Callable[[Any, Any], Tensor],
        targets: Any,
        *,
        horizon: int = 1,
        keep: float = 0.5,
        rounds: int = 4,
        group_by: Callable[[Any], Any] | None = None,
        scheduler: Any | None = None,
        clip_norm: float | None = None,
        removal: str = "renormalised",
        micro_batch: int | None = None,
        snapshots: int = 64,
        seed: int = 0,
    ) -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1 but got {horizon}")
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1 but got {keep}")
        self.loader, self.horizon = loader, horizon
        self.reports: list[WindowReport] = []
        self._model, self._optimizer, self._scheduler = model, unwrap(optimizer), scheduler
        self._objective = as_objective(objective, getattr(objective, "__name__", "objective"))
        self._targets = _as_targets(targets)
        self._policy, self._budget = LookAhead(rounds), Budget(fraction=float(keep))
        self._group_by, self._clip_norm, self._removal = group_by, clip_norm, removal
        self._micro_batch, self._snapshots = micro_batch or 0, snapshots
        self._seeds = torch.Generator().manual_seed(seed)
        future_learning_rates(self._optimizer, scheduler, 1)
        with untouched(model):
            flat, _ = self._live()
            probe(flat, self._objective, self._targets[0].examples)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not there yet: being copied or unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while window := list(islice(batches, self.horizon)):
            if self._budget.fraction == 1:
                yield from window
                continue
            for batch, kept in zip(window, self.choose(window), strict=True):
                yield take(batch, torch.from_numpy(np.flatnonzero(kept)))
            self._measure()

    def choose(self, window: Sequence[Any]) -> list[Array]:
        """What to keep of each batch of a window, as bool masks, shape (n,); adds a report."""
        begin = time.monotonic()
        examples = BatchExamples(window)
        with untouched(self._model):
            flat, live = self._live()
            judge = Judge(
                Task(flat, self._objective, examples), live.rule, self._policy, self._targets,
                self._removal, self._snapshots,
            )  # fmt: skip
            judged = judge.judge(live.state(), self._steps(examples, live))
        kept = [
            self._budget.choose(values, self._groups(batch)).kept
            for batch, values in zip(window, judged.values, strict=True)
        ]
        self.reports.append(_report(judged, kept, time.monotonic() - begin))
        return kept

    def _live(self) -> tuple[FlatModel, LiveOptimizer]:
        live = from_torch(self._optimizer, self._clip_norm)
        names = {p: name for name, p in self._model.named_parameters()}
        stranger = any(p not in names for group in live.parameters for p in group)
        if stranger:
            raise ValueError("the optimizer trains parameters that the model does not have")
        groups = [[names[p] for p in group] for group in live.parameters]  # type: ignore[index]
        return FlatModel(self._model, groups), live

    def _steps(self, examples: BatchExamples, live: LiveOptimizer) -> list[Step]:
        positions = examples.positions()
        rates = future_learning_rates(self._optimizer, self._scheduler, len(positions))
        return [
            Step(
                rows=rows,
                weights=torch.ones(len(rows)),
                lrs=tuple(lrs[k] for k in live.groups),
                seed=int(torch.randint(2**62, (), generator=self._seeds)),
                micro_batch=self._micro_batch,
            )
            for rows, lrs in zip(positions, rates, strict=True)
        ]

    def _groups(self, batch: Any) -> Array | None:
        if self._group_by is None:
            return None
        labels = self._group_by(batch)
        return np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)

    def _measure(self) -> None:
        """Enter what the last window, now trained on, did to the targets."""
        with untouched(self._model):
            flat, _ = self._live()
            theta = flat.read()
            losses = [
                mean_metrics(flat, self._objective, target.examples, theta)["loss"]
                for target in self._targets
            ]
        report = self.reports[-1]
        report.realised = mean(losses) - report.target_loss


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Whatever happens in the block, every layer is in the mode it was in before."""
    modes = {layer: layer.training for layer in module.modules()}
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def _report(judged: Judged, kept: Sequence[Array], seconds: float) -> WindowReport:
    assert judged.influences is not None
    assert judged.target_losses is not None
    dropped = zip(judged.influences, kept, strict=True)
    predicted = math.fsum(float(part.mean(axis=0)[~mask].sum()) for part, mask in dropped)
    return WindowReport(
        steps=len(kept),
        offered=sum(len(mask) for mask in kept),
        kept=sum(int(mask.sum()) for mask in kept),
        predicted=predicted,
        target_loss=float(judged.target_losses.mean()),
        seconds=seconds,
    )


def _as_targets(targets: Any) -> list[Target]:
    named = isinstance(targets, Mapping) and not _is_batch(targets)
    parts = targets.items() if named else [("target", targets)]
    return [
        Target(name, BatchExamples([part] if _is_batch(part) else list(part)))
        for name, part in parts
    ]


def _is_batch(value: Any) -> bool:
    """Whether a value is one batch: its own parts, not theirs, are tensors."""
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, list | tuple | Mapping):
        return any(isinstance(part, Tensor) for part in parts)
    return isinstance(value, Tensor) or hasattr(value, "__dataclass_fields__")
