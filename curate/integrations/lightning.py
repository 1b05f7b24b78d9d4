"""Look-ahead in Lightning: a loader that reads the training off the module's trainer."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from curate.errors import OptionError
from curate.integrations.loader import LookAheadLoader
from curate.integrations.options import LoopOptions, Options
from curate.integrations.window import WindowReport
from curate.models import Objective

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""The data type by the name of a trainer's precision."""


class LightningLookAhead:
    """Give this to `trainer.fit` in place of a train loader.

        trainer.fit(module, LightningLookAhead(loader, module, losses, targets, horizon=4))

    A fit with `ckpt_path` goes on as if it had not stopped; as Lightning restores no generators,
    give the loader one of its own (`DataLoader(..., generator=...)`).

    The optimizer, its schedule (stepped by step, not by epoch), clipping by norm, gradient
    accumulation and precision are read from the module's trainer at the first batch. With several
    devices (DDP) each process is given its part of a `DataLoader`, as Lightning does it.

    Args:
        loader, objective, targets: see `LookAheadLoader`; the objective is called with the module
            itself as model.
        options: see `Options`.

    Raises:
        OptionError: at once, for options out of range; at the first batch, for a loader without
            a length where the trainer has neither limit_train_batches nor max_steps, for manual
            optimization, several optimizers, clipping by value, or schedulers that wait for a
            metric or do not step at every step.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        module: nn.Module,
        objective: Objective | Callable[[Any, Any], Tensor],
        targets: Any,
        **options: Unpack[LoopOptions],
    ) -> None:
        Options(**options)
        self.loader, self._module = loader, module
        self._objective, self._targets, self._options = objective, targets, options
        self._wrapped: LookAheadLoader | None = None
        self._optimizer: Any = None
        self._state: Any = None
        self._parted, self._parted_for = loader, None

    @property
    def reports(self) -> list[WindowReport]:
        """What every window of the last fit came to."""
        return [] if self._wrapped is None else self._wrapped.reports

    def settle(self) -> None:
        """Measure what the last window did; Lightning does not come back to ask."""
        if self._wrapped is not None:
            self._wrapped.settle()

    def state_dict(self) -> dict[str, Any]:
        """See `LookAheadLoader.state_dict`; Lightning puts it in its checkpoints."""
        return self._state or ({} if self._wrapped is None else self._wrapped.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Lightning hands over what was in the checkpoint, before it draws a batch."""
        self._state = state

    def __len__(self) -> int:
        if (length := _length(self._part())) is None:
            length = _limit(self._module.trainer)
        if length is None:
            raise TypeError(f"object of type {type(self.loader).__name__!r} has no len()")
        return length

    @property
    def sampler(self) -> Any:
        """Of this process's part, for Lightning to tell the epoch."""
        return getattr(self._part(), "sampler", None)

    def _part(self) -> Iterable[Any]:
        """The loader; in several processes, of a `DataLoader` what is this one's."""
        trainer: Any = getattr(self._module, "_trainer", None)
        if trainer is None or trainer.world_size == 1:
            return self.loader
        if trainer is not self._parted_for:
            prepare = trainer._data_connector._prepare_dataloader
            self._parted = prepare(self.loader, shuffle=True, mode=trainer.state.stage)
            self._parted_for = trainer
        return self._parted

    def __iter__(self) -> Iterator[Any]:
        trainer: Any = self._module.trainer
        if _length(self) is None:
            raise OptionError(
                "Lightning reads a loader of unknown length one batch ahead of training; give the "
                "trainer limit_train_batches, the batches of an epoch, or max_steps."
            )
        if self._wrapped is None or trainer.optimizers[:1] != [self._optimizer]:  # another fit
            self._wrapped = self._wrap(trainer)
            self._optimizer = trainer.optimizers[0]
            self._state = self._state or _left_over(trainer)
        if self._state:
            self._wrapped.load_state_dict(self._state)
            self._state = None
        return self._stream(self._wrapped, trainer)

    def _stream(self, wrapped: LookAheadLoader, trainer: Any) -> Iterator[Any]:
        """As many batches as an epoch has, which the trainer knows when it draws the first."""
        count = trainer.num_training_batches
        most = None if count == float("inf") else int(count)
        yield from wrapped.stream(self._part(), lambda: _steps_left(trainer), most)
        had = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if most is not None and had < most:  # what Lightning leaves undone then is not simulated
            raise OptionError(
                f"the loader ended after {had} batches, and the trainer was told of {most}; give "
                f"it limit_train_batches={had}."
            )

    def _wrap(self, trainer: Any) -> LookAheadLoader:
        if not self._module.automatic_optimization:
            raise OptionError("with manual optimization, wrap the loader in a LookAheadLoader.")
        if len(trainer.optimizers) != 1:
            raise OptionError(
                f"the module has {len(trainer.optimizers)} optimizers; look-ahead follows one."
            )
        if trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
            raise OptionError("clipping by value is not modeled; clip by norm.")
        return LookAheadLoader(
            self.loader,
            self._module,
            trainer.optimizers[0],
            self._objective,
            self._targets,
            scheduler=_scheduler(trainer),
            clip_norm=trainer.gradient_clip_val or None,
            autocast=_AUTOCAST.get(trainer.precision),
            accumulate=trainer.accumulate_grad_batches,
            scale=lambda count: count / trainer.accumulate_grad_batches,
            **self._options,
        )


def _length(loader: Any) -> int | None:
    """How many batches there are, where that is known."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _limit(trainer: Any) -> int | None:
    """How many batches an epoch of a loader without a length has, by what the trainer was told."""
    told = trainer.limit_train_batches
    most = [] if isinstance(told, float) else [int(told)]
    if trainer.max_steps > 0:
        most.append(trainer.max_steps * trainer.accumulate_grad_batches)
    return min(most, default=None)


def _left_over(trainer: Any) -> Any:
    """A state that Lightning read, but did not hand over: it does not at the end of an epoch."""
    states = getattr(trainer.fit_loop, "_combined_loader_states_to_load", [])
    ours = [state for state in states if "made" in state]
    if ours:
        trainer.fit_loop._combined_loader_states_to_load = []
    return ours[0] if ours else None


def _steps_left(trainer: Any) -> int | None:
    return None if trainer.max_steps < 0 else int(trainer.max_steps - trainer.global_step)


def _scheduler(trainer: Any) -> Any | None:
    """The scheduler that is stepped with the optimizer; one stepped by epoch is ignored."""
    by_step = [config for config in trainer.lr_scheduler_configs if config.interval == "step"]
    if any(config.frequency != 1 for config in by_step):
        raise OptionError(
            "a scheduler that does not step at every step is not modeled; use frequency 1."
        )
    return by_step[0].scheduler if by_step else None
