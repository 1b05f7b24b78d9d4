"""Look-ahead in Lightning: a loader that reads the training off the module's trainer."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from curate.errors import OptionError
from curate.integrations.loader import LookAheadLoader
from curate.integrations.loop import WindowReport
from curate.integrations.options import LoopOptions, Options
from curate.models import Objective

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""The data type by the name of a trainer's precision."""


class LightningLookAhead:
    """Give this to `trainer.fit` in place of a train loader of known length.

        trainer.fit(module, LightningLookAhead(loader, module, losses, targets, horizon=4))

    The optimizer, its schedule (stepped by step, not by epoch), clipping by norm, gradient
    accumulation and precision are read from the module's trainer at the first batch. With several
    devices (DDP) each process is given its part of a `DataLoader`, as Lightning does it.

    Args:
        loader, objective, targets: see `LookAheadLoader`; the objective is called with the module
            itself as model.
        options: see `Options`.

    Raises:
        OptionError: at once, for options out of range; at the first batch, for manual
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
        if not hasattr(loader, "__len__"):
            raise OptionError(
                "Lightning reads a loader of unknown length one batch ahead of training; "
                "give one that has a length."
            )
        Options(**options)
        self.loader, self._module = loader, module
        self._objective, self._targets, self._options = objective, targets, options
        self._wrapped: LookAheadLoader | None = None
        self._optimizer: Any = None
        self._parted, self._parted_for = loader, None

    @property
    def reports(self) -> list[WindowReport]:
        """What every window of the last fit came to."""
        return [] if self._wrapped is None else self._wrapped.reports

    def settle(self) -> None:
        """Measure what the last window did; Lightning does not come back to ask."""
        if self._wrapped is not None:
            self._wrapped.settle()

    def __len__(self) -> int:
        return len(self._part())  # type: ignore[arg-type]

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
        if self._wrapped is None or trainer.optimizers[:1] != [self._optimizer]:  # another fit
            self._wrapped = self._wrap(trainer)
            self._optimizer = trainer.optimizers[0]
        return self._wrapped.stream(self._batches(trainer), lambda: _steps_left(trainer))

    def _batches(self, trainer: Any) -> Iterator[Any]:
        """As many as an epoch has, which the trainer knows when it draws the first."""
        count = trainer.num_training_batches
        yield from islice(self._part(), None if count == float("inf") else int(count))

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
