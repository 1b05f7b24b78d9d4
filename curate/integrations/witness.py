"""Steps of the caller's own loop, watched as they happen and compared with what is simulated.

Two at the start, then as many as fit into one hundredth of the time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from curate.datasets import Examples
from curate.errors import SimulationError
from curate.integrations.compared import Real, require_gradient, require_update
from curate.integrations.training import LiveTraining
from curate.models import Batch, FlatModel, Objective
from curate.models.hidden import Hidden
from curate.models.randomness import NUMPY, PYTHON, Source, torch_sources
from curate.rules import LiveOptimizer, State
from curate.trajectory import Step, Task, gradient

AT_ONCE = 2
"""Steps that are watched at the start, whatever that costs."""
SHARE = 0.01
"""Share of the time that later ones may take."""


@dataclass
class _Start:
    """What the optimizer was about to step from."""

    model: FlatModel
    live: LiveOptimizer
    state: State
    weights: dict[str, Tensor]


@dataclass
class _Watched:
    """One step of the loop: what was foreseen of it, and what was seen.

    batches: that the loop should add up. handed: for those it has been given, and passes: for its
    forward passes, the states of all sources of random numbers before.
    """

    number: int
    step: Step
    examples: Examples
    batches: int
    sources: list[Source]
    handed: list[list[Any]] = field(default_factory=list)
    passes: list[list[Any]] = field(default_factory=list)
    start: _Start | None = None
    gradients: dict[str, Tensor | None] | None = None
    drew: bool = False


class Witness:
    """Watches steps of a loop that trains with `training`.

    Cost of a step that is watched: its gradient once more, and copies of weights, gradients and
    the optimizer's state.
    """

    def __init__(self, training: LiveTraining, objective: Objective) -> None:
        self._training, self._objective = training, objective
        self._watched: _Watched | None = None
        self._handles: list[Any] = []
        self._seen, self._spent, self._latest = 0, 0.0, 0.0
        self._began = time.monotonic()

    def due(self) -> bool:
        """Whether the next step is to be watched."""
        if self._seen < AT_ONCE:
            return True
        return self._spent + self._latest <= SHARE * (time.monotonic() - self._began)

    def watch(self, number: int, step: Step, examples: Examples, batches: int) -> None:
        """Look on while the loop takes `step`, of the rows of `examples` that it is handed.

        number: of the step, for messages. batches: that the loop is to add up for it.
        """
        self.stop()
        training = self._training
        sources = [*torch_sources(training.device), PYTHON, NUMPY]
        sources += Hidden(training.model, self._objective).sources
        self._watched = _Watched(number, replace(step, micro_batch=0), examples, batches, sources)
        self._handles = [
            training.called.register_forward_pre_hook(self._note_pass),
            training.optimizer.register_step_pre_hook(self._note_start),
            training.optimizer.register_step_post_hook(self._note_gradients),
        ]

    def hand(self) -> None:
        """The loop is given another batch."""
        if self._watched is not None:
            self._watched.handed.append([source.state() for source in self._watched.sources])

    def stop(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._watched = [], None

    def check(self) -> None:
        """Compare the step that was watched, if it has been taken, with what is simulated.

        Raises:
            SimulationError: they are not the same.
        """
        watched = self._watched
        self.stop()
        if watched is None or watched.start is None or watched.gradients is None:
            return
        begin = time.monotonic()
        with self._training.simulated(self._objective):
            self._compare(watched, watched.start, watched.gradients)
        self._latest = time.monotonic() - begin
        if self._seen >= AT_ONCE:
            self._spent += self._latest
        self._seen += 1

    def _compare(
        self, watched: _Watched, start: _Start, gradients: dict[str, Tensor | None]
    ) -> None:
        training, model, live = self._training, start.model, start.live
        foreseen = watched.step.lrs
        real = Real(
            f"step {watched.number} of the loop",
            start.weights,
            training.copies(),
            gradients,
            live.lrs,
            foreseen if len(foreseen) == len(live.lrs) else live.lrs,
        )
        model.autocast = training.half
        if not (training.compiled and watched.drew):  # what is compiled draws other numbers
            replayed = _Replayed(self._objective, watched)
            task = Task(model, replayed, watched.examples)
            handle = training.model.register_forward_pre_hook(replayed.before_pass)
            try:
                simulated = gradient(task, start.state.theta, watched.step)
            finally:
                handle.remove()
            clipped = model.unpack(live.clipped(simulated.mean))
            require_gradient(real, clipped, training.autocast)
        whole = model.pack({name: gradients.get(name) for name in model.names})
        expected = live.unclipped.update(whole, start.state, live.lrs)
        require_update(real, model.unpack(expected.theta))

    def _note_pass(self, module: Any, _: Any) -> None:
        watched = self._watched
        if watched is None or self._training.simulating or not module.training:
            return
        if torch.is_grad_enabled():
            watched.passes.append([source.state() for source in watched.sources])

    def _note_start(self, *_: Any) -> None:
        watched = self._watched
        if watched is None or watched.start is not None:
            return
        model, live = self._training.read()
        watched.start = _Start(model, live, live.state(), self._training.copies())

    def _note_gradients(self, *_: Any) -> None:
        watched = self._watched
        if watched is None or watched.start is None or watched.gradients is not None:
            return
        if len(watched.handed) != watched.batches:
            raise SimulationError(
                f"step {watched.number} of the loop: the optimizer steps after "
                f"{len(watched.handed)} of {watched.batches} batches; set accumulate to the "
                "batches that the loop adds up for a step."
            )
        watched.gradients = {
            name: None if p.grad is None else p.grad.detach().to_dense().clone()
            for name, p in self._training.parameters().items()
        }
        if watched.passes:
            first = zip(watched.sources, watched.passes[0], strict=True)
            watched.drew = any(source.moved_from(state) for source, state in first)


class _Replayed(Objective):
    """An objective that draws the random numbers that the loop drew for it."""

    def __init__(self, objective: Objective, watched: _Watched) -> None:
        self._objective, self._sources = objective, watched.sources
        self._handed, self._passes = iter(watched.handed), iter(watched.passes)

    def losses(self, model: Any, batch: Batch) -> Tensor:
        self._set(next(self._handed, ()))
        return self._objective.losses(model, batch)

    def sizes(self, batch: Batch) -> Tensor:
        return self._objective.sizes(batch)

    def before_pass(self, *_: Any) -> None:
        """A hook: each forward pass begins as that of the loop did."""
        self._set(next(self._passes, ()))

    def _set(self, states: Sequence[Any]) -> None:
        for source, state in zip(self._sources, states, strict=False):
            source.set_state(state)
