"""The caller's training as it stands: read, never changed."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from curate.errors import OptimizerError, UserError
from curate.integrations.sharded import gathered, group_of, is_sharded
from curate.models import FlatModel
from curate.models.hidden import Hidden
from curate.models.randomness import undisturbed, usual_sources
from curate.rules import LiveOptimizer, from_torch, whole
from curate.runtime.ranks import ALONE, Members, Ranks

_modules = import_module("torch.nn.modules.module")
_optimizers = import_module("torch.optim.optimizer")  # torch.optim hides it
GLOBAL_HOOKS = (
    _modules._global_forward_pre_hooks,
    _modules._global_forward_hooks,
    _modules._global_backward_hooks,
    _optimizers._global_optimizer_pre_hooks,
    _optimizers._global_optimizer_post_hooks,
)
OPTIMIZER_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


@dataclass
class LiveTraining:
    """A model and what trains it, in one process or in several that train together.

    model: its layers train in the mode that they are in when it is read. For a compiled model
        (`torch.compile`) and for `DistributedDataParallel`, the one inside. One that `fully_shard`
        has spread is read whole: weights and the optimizer's state, in every process.
    optimizer: of torch.optim. scheduler: stepped once per optimizer step, or None.
    clip_norm: the norm that gradients are clipped to, or None.
    autocast: what the loop's passes are autocast to. If None, it is what Accelerate was told, if
        it prepared the model, else what is seen at the loop's first call. Steps are simulated
        under bfloat16, too, but in float32 for float16, where gradients vanish without the loop's
        own scale. The way back is in float32.
    idle: parameters that the loss does not use; None before that is known.
    mean_over: where several processes train, what each divides its losses by before gradients
        are averaged: those of a "batch", those of all its batches of a step ("process"), or of
        all processes' ("step").
    ranks: the processes, all of torch's default group unless DistributedDataParallel was given
        another. Without it the loop is taken to average gradients itself.
    called: the model as the loop calls it. simulating: whether its calls are not the loop's now.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any | None = None
    clip_norm: float | None = None
    autocast: torch.dtype | None = None
    idle: frozenset[str] | None = None
    mean_over: str = "batch"
    ranks: Ranks = field(default=ALONE, init=False)
    called: nn.Module = field(init=False)
    simulating: bool = field(default=False, init=False)
    _hook: Any = field(default=None, init=False)
    _parts: dict[str, nn.Parameter] | None = field(default=None, init=False)
    _gathered: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.called, self.model = self.model, _inside(self.model)
        if is_sharded(self.model):
            self._parts = dict(self.model.named_parameters())
            if any(p.dtype != self._parts[name].dtype for name, p in self.leaves().items()):
                raise UserError(
                    "fully_shard computes in another precision than it keeps (MixedPrecisionPolicy "
                    "with param_dtype), which is not simulated; leave that out and use "
                    "torch.autocast."
                )
        if isinstance(self.model, torch.jit.ScriptModule):
            raise UserError("a scripted model takes no hooks; give the module it was made from.")
        if _wrapped_by_accelerate(self.model):
            self.autocast = self.autocast or _accelerate_computes_in()
        elif self.autocast is None:
            self._hook = self.called.register_forward_pre_hook(self._note_autocast)
        self.ranks = _trained_by(self.called)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def half(self) -> torch.dtype | None:
        """What simulated passes are autocast to."""
        return self.autocast if self.autocast == torch.bfloat16 else None

    @property
    def lowest(self) -> torch.dtype | None:
        """What loses most in a pass: autocast's type, or the smallest one of a parameter."""
        kinds = [p.dtype for p in self.model.parameters() if p.is_floating_point()]
        return self.autocast or min(kinds, key=lambda kind: kind.itemsize, default=None)

    @property
    def compiled(self) -> bool:
        """Whether the loop runs the model compiled, or a part of it."""
        return any(
            hasattr(module, "_orig_mod") or vars(module).get("_compiled_call_impl") is not None
            for module in self.called.modules()
        )

    def parameters(self) -> dict[str, nn.Parameter]:
        """What the optimizer may move, by name."""
        moved = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self._named().items() if id(p) in moved}

    def leaves(self) -> dict[str, nn.Parameter]:
        """What a backward pass of the loop's leaves gradients in, by name."""
        with self._whole():
            return dict(self.model.named_parameters())

    def _named(self) -> dict[str, nn.Parameter]:
        """All parameters, by name, as the optimizer has them."""
        return dict(self.model.named_parameters()) if self._parts is None else self._parts

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """A block in which parameters of the model are whole."""
        if self._parts is None or self._gathered:
            yield
            return
        with gathered(self.model):
            self._gathered = True
            try:
                yield
            finally:
                self._gathered = False

    def copies(self) -> dict[str, Tensor]:
        """Copies of the weights that train, by name, whichever optimizer has them."""
        trained = {name: p for name, p in self._named().items() if p.requires_grad}
        return {name: whole(p.detach()).clone() for name, p in trained.items()}

    def outline(self) -> list[Any]:
        """What trains and how, but for learning rates: whatever must not change in a window."""
        rates = {"params", "lr", "initial_lr", "max_lr", "min_lr"}
        return [
            (
                {key: value for key, value in group.items() if key not in rates},
                [(id(p), p.requires_grad) for p in group["params"]],
            )
            for group in self.optimizer.param_groups
        ]

    def hooks(self) -> list[Any]:
        """What runs when the optimizer or the model is called, beside their own code."""
        own = [vars(self.optimizer).get(name) for name in ("step", *OPTIMIZER_HOOKS)]
        return [*own, *GLOBAL_HOOKS, *getattr(self.scheduler, "lr_lambdas", [])]

    def read(self) -> tuple[FlatModel, LiveOptimizer]:
        """The model as a function of theta, and the optimizer as a rule and its state."""
        named = self._named()
        names = {p: name for name, p in named.items()}
        idle = None if self.idle is None else [named[name] for name in self.idle]
        live = from_torch(self.optimizer, self.clip_norm, idle)
        if any(p not in names for group in live.parameters for p in group):
            raise UserError("the optimizer trains parameters that the model does not have.")
        groups = [[names[p] for p in group] for group in live.parameters]  # type: ignore[index]
        with self._whole():
            return FlatModel(self.model, groups, autocast=self.half), live

    def learning_rates(self, steps: int) -> list[tuple[float, ...]]:
        """The learning rate of every param group, for each of the next steps."""
        return future_learning_rates(self.optimizer, self.scheduler, steps)

    @contextmanager
    def simulated(self, objective: Any) -> Iterator[None]:
        """A block whose calls of the model are not the loop's, without Accelerate's wrapper.

        Whatever happens in it, it leaves no trace in what the model, the objective or hooks of
        model and optimizer remember, nor in any generator of random numbers (`Hidden`).
        """
        hidden = Hidden(self.model, objective, *self.hooks())
        attributes = vars(self.model)
        before, self.simulating = self.simulating, True
        try:
            with undisturbed(usual_sources(self.device)), hidden.put_back():
                if _wrapped_by_accelerate(self.model):
                    attributes["forward"] = attributes["_original_forward"]
                with self._whole():
                    yield
        finally:
            self.simulating = before

    def _note_autocast(self, module: nn.Module, _: Any) -> None:
        if self.simulating or not (torch.is_grad_enabled() and module.training):
            return
        device = next((p.device.type for p in self.model.parameters()), "cpu")
        if torch.is_autocast_enabled(device):
            self.autocast = torch.get_autocast_dtype(device)
        self._hook.remove()


def _inside(model: nn.Module) -> nn.Module:
    """The model that was compiled or is trained by several processes."""
    if isinstance(model, DistributedDataParallel):
        return _inside(model.module)
    inside: nn.Module | None = getattr(model, "_orig_mod", None)
    return model if inside is None else _inside(inside)


def _trained_by(called: nn.Module) -> Ranks:
    """The processes that train a model together. Waits for them."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    wrapped = [m for m in called.modules() if isinstance(m, DistributedDataParallel)]
    group = wrapped[0].process_group if wrapped else group_of(called)
    if distributed.get_world_size(group) == 1:
        return ALONE
    return Members(None if group is distributed.group.WORLD else group)


def _wrapped_by_accelerate(model: nn.Module) -> bool:
    return "_original_forward" in vars(model)


def _accelerate_computes_in() -> torch.dtype | None:
    from accelerate.state import AcceleratorState

    precision: str = AcceleratorState().mixed_precision
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def future_learning_rates(
    optimizer: torch.optim.Optimizer, scheduler: Any | None, steps: int
) -> list[tuple[float, ...]]:
    """Learning rates of every param group at each of the next `steps` steps.

    The first are the optimizer's own; the others are what `scheduler`, stepped once per optimizer
    step, will set. Without a scheduler all are the first.

    Raises:
        OptimizerError: the scheduler waits for a metric, so that its rates cannot be foreseen; or
            it moves more than learning rates.
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
    counted = Hidden(*getattr(scheduler, "lr_lambdas", []))
    with warnings.catch_warnings(), counted.put_back():
        warnings.simplefilter("ignore")  # "step the optimizer first", which nobody does here
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
    """An optimizer with the options of the same groups and nothing to train."""
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
