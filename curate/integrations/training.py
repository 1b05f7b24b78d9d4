"""The caller's training as it stands: read, never changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from curate.errors import UserError
from curate.integrations.future import future_learning_rates
from curate.models import FlatModel
from curate.rules import LiveOptimizer, from_torch


@dataclass(frozen=True)
class Training:
    """A model and what trains it.

    model: the mode that its layers are in when it is read is the one they train in;
        of a compiled one (`torch.compile`), the model inside.
    optimizer: of torch.optim. scheduler: stepped once per optimizer step, or None.
    clip_norm: the norm that gradients are clipped to, or None.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        # a compiled model cannot be differentiated twice; inside is the same one, uncompiled
        object.__setattr__(self, "model", getattr(self.model, "_orig_mod", self.model))
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            size = distributed.get_world_size()
            if size > 1:
                raise UserError(
                    f"{size} processes train together: each would simulate its own part of the "
                    "batch as if it were all of it; look-ahead in a loop runs in one process only."
                )

    def read(self) -> tuple[FlatModel, LiveOptimizer]:
        """The model as a function of theta, and the optimizer as a rule and its state."""
        live = from_torch(self.optimizer, self.clip_norm)
        names = {p: name for name, p in self.model.named_parameters()}
        if any(p not in names for group in live.parameters for p in group):
            raise UserError("the optimizer trains parameters that the model does not have.")
        groups = [[names[p] for p in group] for group in live.parameters]  # type: ignore[index]
        return FlatModel(self.model, groups), live

    def learning_rates(self, live: LiveOptimizer, steps: int) -> list[tuple[float, ...]]:
        """Of every param group in `live`, for each of the next `steps` steps."""
        rates = future_learning_rates(self.optimizer, self.scheduler, steps)
        return [tuple(lrs[k] for k in live.groups) for lrs in rates]


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Whatever happens in the block, every layer is in the mode it was in before."""
    modes = {layer: layer.training for layer in module.modules()}
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
