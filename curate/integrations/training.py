"""The caller's training as it stands: read, never changed."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from curate.errors import OptimizerError, UserError
from curate.models import FlatModel
from curate.rules import LiveOptimizer, from_torch


@dataclass
class Training:
    """A model and what trains it.

    model: the mode that its layers are in when it is read is the one they train in;
        of a compiled one (`torch.compile`), the model inside.
    optimizer: of torch.optim. scheduler: stepped once per optimizer step, or None.
    clip_norm: the norm that gradients are clipped to, or None.
    autocast: what the loop's passes are autocast to, or None. Where nothing is given it is what
        Accelerate was told, if it prepared the model, else what is seen at the loop's first call.
        Steps are simulated under bfloat16, too, but in float32 if it is float16, where gradients
        vanish without the loop's own scale. The way back is in float32.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any | None = None
    clip_norm: float | None = None
    autocast: torch.dtype | None = None
    _simulating: bool = field(default=False, init=False)
    _hook: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        called, self.model = self.model, getattr(self.model, "_orig_mod", self.model)
        if _wrapped_by_accelerate(self.model):
            self.autocast = self.autocast or _accelerate_computes_in()
        elif self.autocast is None:
            self._hook = called.register_forward_pre_hook(self._note_autocast)
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
        half = self.autocast if self.autocast == torch.bfloat16 else None
        return FlatModel(self.model, groups, autocast=half), live

    def learning_rates(self, live: LiveOptimizer, steps: int) -> list[tuple[float, ...]]:
        """Of every param group in `live`, for each of the next `steps` steps."""
        rates = future_learning_rates(self.optimizer, self.scheduler, steps)
        return [tuple(lrs[k] for k in live.groups) for lrs in rates]

    @contextmanager
    def simulated(self) -> Iterator[None]:
        """Calls in the block are not the loop's, and no wrapper of Accelerate's is around them.

        Whatever happens in the block, every layer is in the mode it was in before.
        """
        modes = {layer: layer.training for layer in self.model.modules()}
        own = vars(self.model)
        forward = own.get("forward")
        before, self._simulating = self._simulating, True
        try:
            if _wrapped_by_accelerate(self.model):
                own["forward"] = own["_original_forward"]
            yield
        finally:
            self._simulating = before
            if forward is not None:
                own["forward"] = forward
            for layer, mode in modes.items():
                layer.training = mode

    def _note_autocast(self, module: nn.Module, _: Any) -> None:
        if self._simulating or not (torch.is_grad_enabled() and module.training):
            return
        device = _device(self.model)
        if torch.is_autocast_enabled(device):
            self.autocast = torch.get_autocast_dtype(device)
        self._hook.remove()


def _device(model: nn.Module) -> str:
    return next((p.device.type for p in model.parameters()), "cpu")


def _wrapped_by_accelerate(model: nn.Module) -> bool:
    return "_original_forward" in vars(model)


def _accelerate_computes_in() -> torch.dtype | None:
    from accelerate.state import AcceleratorState

    told: str = AcceleratorState().mixed_precision
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(told)


def future_learning_rates(
    optimizer: torch.optim.Optimizer, scheduler: Any | None, steps: int
) -> list[tuple[float, ...]]:
    """Learning rates of every param group at each of the next `steps` steps.

    The first are the optimizer's own; the others what `scheduler`, stepped once
    per optimizer step, will set. Without a scheduler they all are the first.

    Raises:
        OptimizerError: the scheduler waits for a metric, so nobody knows; or it
            moves more than learning rates.
    """
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise OptimizerError(
            "ReduceLROnPlateau decides by a metric that is not known yet; step it yourself and "
            "give no scheduler: learning rates then stay as they are within a window."
        )
    rates = [tuple(float(group["lr"]) for group in optimizer.param_groups)]
    if scheduler is None or steps == 1:
        return rates * steps
    stand_in = _without_parameters(optimizer)
    imagined = copy.deepcopy(scheduler, {id(optimizer): stand_in})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "step the optimizer first": nobody does here
        for _ in range(steps - 1):
            imagined.step()
            _refuse_other_changes(optimizer, stand_in)
            rates.append(tuple(float(group["lr"]) for group in stand_in.param_groups))
    return rates


def _refuse_other_changes(
    optimizer: torch.optim.Optimizer, stand_in: torch.optim.Optimizer
) -> None:
    for group, imagined in zip(optimizer.param_groups, stand_in.param_groups, strict=True):
        for name in ("momentum", "betas", "weight_decay", "alpha"):
            if name in group and imagined[name] != group[name]:
                raise OptimizerError(
                    f"the scheduler moves {name} as well as the learning rate, which is not "
                    "modeled; keep it fixed (cycle_momentum=False), or use a horizon of 1."
                )


def _without_parameters(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer with the same groups' options and nothing to train."""
    groups: list[dict[str, Any]] = [
        {
            key: value.clone() if isinstance(value, Tensor) else copy.copy(value)
            for key, value in group.items()
            if key != "params"
        }
        | {"params": [torch.zeros(0, requires_grad=True)]}
        for group in optimizer.param_groups
    ]
    return torch.optim.SGD(groups, lr=0.0)
