"""Steps of the caller's own loop, watched as they happen and compared with what is simulated.

Two at the start, then as many as fit into one hundredth of the time.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from curate.errors import SimulationError
from curate.integrations.compared import (
    UPDATE,
    Real,
    require_gradient,
    require_update,
    surely_within,
)
from curate.integrations.evening import left_as_it_is
from curate.integrations.sharded import HOOKS
from curate.integrations.training import LiveTraining
from curate.models import Batch, FlatModel, Objective
from curate.models.hidden import Hidden
from curate.models.randomness import Source, usual_sources
from curate.rules import LiveOptimizer, State, whole
from curate.runtime.ranks import agreed, everywhere
from curate.selection.driver import Decided
from curate.trajectory import Task, gradient

AT_ONCE = 2
"""Steps that are watched at the start, whatever that costs."""
SHARE = 0.01
"""Share of the time that later ones may take."""


@dataclass
class _Watched:
    """Step k of a window, as it was decided on and as it is seen.

    left: the state before it, where that is known. handed: for every batch that the loop has been
    given, and passes: for every forward pass, the states of all sources of random numbers before.
    memory: puts back what was remembered then.
    """

    decided: Decided
    k: int
    left: State | None
    sources: list[Source]
    handed: list[list[Any]] = field(default_factory=list)
    passes: list[list[Any]] = field(default_factory=list)
    memory: Callable[[], None] = lambda: None
    before: tuple[FlatModel, LiveOptimizer, State, dict[str, Tensor]] | None = None
    real: Real | None = None
    expected: State | None = None

    @property
    def number(self) -> int:
        """Of the step, in the loop."""
        return self.decided.first_step + self.k

    @property
    def batches(self) -> int:
        """How many the loop is to add up for the step."""
        step = replace(self.decided.judged.steps[self.k], micro_batch=0)
        return len(self.decided.judge.task.chunks(step))

    def all_take_part(self) -> bool:
        """Whether something is kept of every batch, so that its pass is one of the step's."""
        step = self.decided.judged.steps[self.k]
        return len(self.decided.kept(self.k).cuts) == len(step.cuts)


def require_start(
    watched: _Watched, real: Real, live: LiveOptimizer, names: tuple[str, ...], state: State
) -> None:
    """Raise SimulationError if a step does not begin as it was foreseen."""
    judge, left = watched.decided.judge, watched.left
    if names != judge.task.model.names:
        others = sorted({*names} ^ {*judge.task.model.names})
        raise SimulationError(
            f"{real.when}: {others[0] if others else 'some of the parameters'} is frozen, "
            "unfrozen or in another group since the window was simulated; change what trains "
            "between windows (a horizon of 1 has no within)."
        )
    if live.rule != judge.rule:
        raise SimulationError(
            f"{real.when}: the optimizer's options (weight decay, momentum, betas) are others than "
            "when the window was simulated; change them between windows, or use a horizon of 1 "
            "and set them before the batch is drawn."
        )
    if left is None:
        return
    for name, one, other in zip(
        ("weights", *sorted(state.slots)), state.tensors(), left.tensors(), strict=True
    ):
        if surely_within(UPDATE * float(other.norm()), one, other):
            continue
        off, size = float((one - other).double().norm()), float(other.double().norm())
        if off > UPDATE * size:
            raise SimulationError(
                f"{real.when}: the {name.rpartition('/')[2]} it begins with are not those that the "
                f"step before left, {off / size if size else off:.2g} of their norm apart: what "
                "changes them between steps is not simulated."
            )


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
        self._outline: list[Any] = []
        self._held = 0
        self._begin: State | None = None

    def open(self, state: State) -> None:
        """A window is decided on, with the training in this state."""
        self._outline, self._held = self._training.outline(), len(self._training.optimizer.state)
        self._begin = state

    def go_on(self, decided: Decided, k: int) -> None:
        """The loop is about to be given step k of a window.

        Raises:
            SimulationError: the step before went otherwise; or what trains, or how, was changed
                within the window.
        """
        left = self.check()
        if k:
            self._require_outline(decided.first_step + k)
        if decided.weights[k].any() and self.due():
            self._watch(decided, k, left if k else self._begin)
        self._begin = None

    def due(self) -> bool:
        """Whether the next step is to be watched, here and in all other processes."""
        if self._seen < AT_ONCE:
            return True
        due = self._spent + self._latest <= SHARE * (time.monotonic() - self._began)
        return bool(agreed(self._training.ranks, due))

    def _require_outline(self, number: int) -> None:
        held = len(self._training.optimizer.state)
        if self._training.outline() != self._outline or held < self._held:
            raise SimulationError(
                f"step {number} of the loop: parameters were frozen, unfrozen or added, an option "
                "of the optimizer was changed or its state cleared since the window was "
                "simulated; do that between windows, or use a horizon of 1."
            )
        self._held = held

    def _watch(self, decided: Decided, k: int, left: State | None) -> None:
        """Look on while the loop takes a step."""
        self.stop()
        self._latest, training = 0.0, self._training
        own = Hidden(training.model, self._objective).sources
        sources = [*usual_sources(training.device), *own]
        watched = _Watched(decided, k, left, sources)
        if not (watched.all_take_part() and self._takes_one_mean(decided, k)):
            return
        self._watched = watched
        self._handles = [
            training.called.register_forward_pre_hook(self._note_pass),
            training.optimizer.register_step_pre_hook(self._note_start),
            training.optimizer.register_step_post_hook(self._note_step),
        ]

    def _takes_one_mean(self, decided: Decided, k: int) -> bool:
        """Whether the loop's mean of the means of its batches is to be that over all rows.

        It is not where nothing makes it so, and batches differ in size, as the last of an epoch.
        """
        training, scores = self._training, decided.judged.scores
        plain = left_as_it_is(training, decided.weights[k] > 0)
        if not plain or training.mean_over != "batch" or scores is None:
            return True
        batches = scores.sizes[k].tensor_split(decided.judged.steps[k].cuts)
        return len({round(float(sizes.sum()), 6) for sizes in batches}) < 2

    def hand(self) -> None:
        """The loop is given another batch."""
        if self._watched is not None:
            self._watched.handed.append([source.state() for source in self._watched.sources])

    def stop(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._watched = [], None

    def check(self) -> State | None:
        """Compare where the step that was watched, if it has been taken, has left the parameters.

        Returns:
            The state that it should have left.

        Raises:
            SimulationError: they are elsewhere than the rule takes them.
        """
        watched = self._watched
        self.stop()
        if watched is None or watched.real is None or watched.before is None:
            return None
        begin = time.monotonic()
        assert watched.expected is not None
        expected = watched.before[0].unpack(watched.expected.theta)
        require_update(watched.real, self._training.copies(), expected)
        self._count(time.monotonic() - begin)
        self._seen += 1
        return watched.expected

    def _count(self, seconds: float) -> None:
        self._latest += seconds
        if self._seen >= AT_ONCE:
            self._spent += seconds

    def _note_pass(self, module: Any, _: Any) -> None:
        watched = self._watched
        if watched is None or self._training.simulating or not module.training:
            return
        if torch.is_grad_enabled():
            if not watched.passes:
                with _as_written(self._training.model):
                    watched.memory = Hidden(self._training.model, self._objective).snapshot()
            watched.passes.append([source.state() for source in watched.sources])

    def _note_start(self, *_: Any) -> None:
        watched = self._watched
        if watched is not None and watched.before is None and not self._training.simulating:
            model, live = self._training.read()
            watched.before = model, live, live.state(), self._training.copies()

    def _note_step(self, *_: Any) -> None:
        watched = self._watched
        if watched is None or watched.before is None or watched.real is not None:
            return
        begin = time.monotonic()
        model, live, state, weights = watched.before
        if len(watched.handed) != watched.batches:
            raise SimulationError(
                f"step {watched.number} of the loop: the optimizer steps after "
                f"{len(watched.handed)} of {watched.batches} batches; set accumulate to the "
                "batches that the loop adds up for a step."
            )
        gradients = {
            name: None if p.grad is None else whole(p.grad.detach()).to_dense()
            for name, p in self._training.parameters().items()
        }
        if all(grad is None for grad in gradients.values()):
            self.stop()  # a step without gradients moves nothing
            return
        size = self._training.ranks.size
        when = f"step {watched.number} of the loop"
        when += f", averaged over {size} processes" if size > 1 else ""
        lrs = watched.decided.judged.steps[watched.k].lrs
        rates = lrs if len(lrs) == len(live.lrs) else live.lrs
        watched.real = Real(when, weights, gradients, live.lrs, rates)
        require_start(watched, watched.real, live, model.names, state)
        with self._training.simulated(self._objective):
            self._compare_gradient(watched, model, live, state)
        packed = model.pack({name: gradients.get(name) for name in model.names})
        watched.expected = live.unclipped.update(packed, state, live.lrs)
        self._count(time.monotonic() - begin)

    def _compare_gradient(
        self, watched: _Watched, model: FlatModel, live: LiveOptimizer, state: State
    ) -> None:
        """From the same weights, memory and random numbers."""
        training, decided = self._training, watched.decided
        first = zip(watched.sources, watched.passes[0] if watched.passes else (), strict=False)
        drew = self._any(source.moved_from(before) for source, before in first)
        if training.compiled and drew:  # other numbers than what is not compiled draws
            return
        assert watched.real is not None
        with _as_written(training.model):
            watched.memory()
        model.autocast = training.half
        step = replace(decided.kept(watched.k), micro_batch=0)
        examples = decided.judge.task.examples
        for skip in range(len(watched.passes) + 1):  # the loop may have had other passes before
            replayed = _Replayed(self._objective, watched, skip)
            task = Task(model, replayed, examples, training.ranks, watched.sources)
            handle = training.model.register_forward_pre_hook(replayed.before_pass)
            try:
                simulated = gradient(task, state.theta, step)
            finally:
                handle.remove()
            draws = self._any([replayed.draws])
            more = drew and self._any([skip + 1 + replayed.taken <= len(watched.passes)])
            parts = model.unpack(live.clipped(simulated.mean))
            try:
                require_gradient(watched.real, parts, training.lowest)
            except SimulationError:
                if not (draws or more):
                    raise
                if more:
                    continue
            return

    def _any(self, holds: Iterable[bool]) -> bool:
        """Whether one of these holds, in any process; waits for all of them."""
        return not everywhere(self._training.ranks, not any(holds))


@contextmanager
def _as_written(model: nn.Module) -> Iterator[None]:
    """A block in which no `forward` is put into the model, as Lightning does for its own steps.

    After it parameters and hooks are those before it, which `fully_shard` changes for a pass.
    """
    layers = [
        (layer, {name: vars(layer)[name] for name in HOOKS}, dict(layer._parameters))
        for layer in model.modules()
    ]
    put = {key: vars(model).pop(key) for key in ("forward",) if key in vars(model)}
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        vars(model).update(put)
        for layer, hooks, parameters in layers:
            vars(layer).update(hooks)
            layer._parameters.update(parameters)


class _Replayed(Objective):
    """An objective that draws the random numbers that the loop drew for it.

    skip: passes of the loop that were not for it. taken: how many it takes. draws: whether it
    draws numbers outside of passes, which the loop may have drawn at any time.
    """

    def __init__(self, objective: Objective, watched: _Watched, skip: int) -> None:
        self._objective, self._sources = objective, watched.sources
        self._handed, self._passes = iter(watched.handed), iter(watched.passes[skip:])
        self.taken, self.draws = 0, False
        self._last: Sequence[Any] = ()

    def losses(self, model: Any, batch: Batch) -> Tensor:
        self._last = self._set(next(self._handed, ()))
        first = self.taken
        losses = self._objective.losses(model, batch)
        self.draws |= self.taken == first and self._moved()
        return losses

    def sizes(self, batch: Batch) -> Tensor:
        return self._objective.sizes(batch)

    def before_pass(self, *_: Any) -> None:
        """A hook: each forward pass begins as that of the loop did."""
        if self.taken == 0:
            self.draws |= self._moved()
        self.taken += 1
        self._last = self._set(next(self._passes, ()))

    def _moved(self) -> bool:
        pairs = zip(self._sources, self._last, strict=False)
        return any(source.moved_from(state) for source, state in pairs)

    def _set(self, states: Sequence[Any]) -> Sequence[Any]:
        for source, state in zip(self._sources, states, strict=False):
            source.set_state(state)
        return states
