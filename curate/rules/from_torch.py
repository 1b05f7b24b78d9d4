"""A live `torch.optim` optimizer as a rule and the state it is in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from curate.errors import OptimizerError
from curate.rules.adafactor import Adafactor
from curate.rules.adagrad import Adagrad
from curate.rules.adam import Adam, AdamW
from curate.rules.base import Rule, Slots, State
from curate.rules.rmsprop import RMSprop
from curate.rules.sgd import SGD
from curate.rules.wrappers import Clipped, Grouped

Group = Mapping[str, Any]
Members = tuple[Tensor, ...]
Reader = tuple[Callable[[Group, Members], Rule], Mapping[str, str]]
"""The rule of a param group and its parameters, and torch's names of the rule's slots."""

NOT_MODELED = ("amsgrad", "maximize")


@dataclass(frozen=True)
class LiveOptimizer:
    """What an optimizer would do next.

    parameters: those that train, group by group; theta is them, flattened, in
        this order. A parameter that was never updated while others were (it
        takes no part in the loss) counts as frozen.
    rule: one `Grouped` rule, clipped if `clip_norm` was given.
    groups: where each of them stands in `optimizer.param_groups`.
    slots, step: the state beside theta. lrs: of every group, now.
    """

    parameters: tuple[tuple[Tensor, ...], ...]
    groups: tuple[int, ...]
    rule: Rule
    slots: Slots
    step: int
    lrs: tuple[float, ...]

    def state(self) -> State:
        """The state from which the next step would be taken; copies, not views."""
        theta = _flat([p for group in self.parameters for p in group])
        return State(theta, self.slots, self.step)


def from_torch(optimizer: torch.optim.Optimizer, clip_norm: float | None = None) -> LiveOptimizer:
    """Read one of `READERS`, classes of `torch.optim`; the optimizer is not touched.

    Wrappers that keep the real one as `.optimizer` (Accelerate, Lightning) are seen through.

    Raises:
        OptimizerError: another optimizer, an option that is not modeled, or
            parameters that have taken different numbers of steps.
    """
    optimizer = unwrap(optimizer)
    build, names = _reader(optimizer)
    started = any(optimizer.state.get(p) for g in optimizer.param_groups for p in g["params"])
    found = [(k, _training(g, optimizer, started)) for k, g in enumerate(optimizer.param_groups)]
    positions = tuple(k for k, members in found if members)
    if not positions:
        raise OptimizerError("the optimizer has no parameter that requires a gradient.")
    groups = [optimizer.param_groups[k] for k in positions]
    parameters = tuple(members for _, members in found if members)
    slots: dict[str, list[Tensor]] = {}
    for k, (group, members) in enumerate(zip(groups, parameters, strict=True)):
        for p in members:
            for ours, fresh in build(group, (p,)).init(_flat([p])).items():
                part = optimizer.state.get(p, {}).get(names[ours])
                slots.setdefault(f"{k}/{ours}", []).append(fresh if part is None else part)
    rule: Rule = Grouped(
        tuple(build(*each) for each in zip(groups, parameters, strict=True)),
        tuple(sum(p.numel() for p in members) for members in parameters),
    )
    return LiveOptimizer(
        parameters=parameters,
        groups=positions,
        rule=rule if clip_norm is None else Clipped(rule, clip_norm),
        slots={name: _flat(parts) for name, parts in slots.items()},
        step=_steps_taken(optimizer, parameters),
        lrs=tuple(float(group["lr"]) for group in groups),
    )


def unwrap(optimizer: Any) -> torch.optim.Optimizer:
    """The `torch.optim` optimizer inside whatever wraps it."""
    while type(optimizer) not in READERS and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptimizerError(f"a {type(optimizer).__name__} is no torch.optim optimizer.")
    return optimizer


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _training(group: Group, optimizer: torch.optim.Optimizer, started: bool) -> Members:
    """Parameters of the group that are updated; without momentum, SGD has no trace of that."""
    traceless = isinstance(optimizer, torch.optim.SGD) and not group["momentum"]
    return tuple(
        p
        for p in group["params"]
        if p.requires_grad and (optimizer.state.get(p) or not started or traceless)
    )


def _reader(optimizer: torch.optim.Optimizer) -> Reader:
    kind = type(optimizer)
    if kind not in READERS:
        known = ", ".join(sorted(k.__name__ for k in READERS))
        raise OptimizerError(
            f"optimizer {kind.__name__} is not modeled; use torch.optim's {known}."
        )
    for group in optimizer.param_groups:
        for option in NOT_MODELED:
            if group.get(option):
                raise OptimizerError(f"{kind.__name__} with {option}=True is not modeled.")
    return READERS[kind]


def _steps_taken(
    optimizer: torch.optim.Optimizer, parameters: tuple[tuple[Tensor, ...], ...]
) -> int:
    states = [optimizer.state.get(p) or {} for group in parameters for p in group]
    counts = {int(s["step"]) for s in states if "step" in s}
    if len(counts) > 1:
        raise OptimizerError(
            f"parameters have taken different numbers of steps ({min(counts)} to {max(counts)}); "
            "an optimizer whose parameters did not all start together is not modeled."
        )
    if counts:
        return counts.pop()
    return int(any(s.get("momentum_buffer") is not None for s in states))


def _sgd(group: Group, _: Members) -> Rule:
    names = ("momentum", "dampening", "nesterov", "weight_decay")
    return SGD(**{name: group[name] for name in names})


def _adam(group: Group, _: Members) -> Rule:
    kind = AdamW if group.get("decoupled_weight_decay") else Adam
    return _adam_like(kind, group)


def _adamw(group: Group, _: Members) -> Rule:
    return _adam_like(AdamW, group)


def _adam_like(kind: type[Adam], group: Group) -> Rule:
    beta1, beta2 = (float(b) for b in group["betas"])
    return kind(betas=(beta1, beta2), eps=group["eps"], weight_decay=group["weight_decay"])


def _rmsprop(group: Group, _: Members) -> Rule:
    names = ("alpha", "eps", "weight_decay", "momentum", "centered")
    return RMSprop(**{name: group[name] for name in names})


def _adagrad(group: Group, _: Members) -> Rule:
    names = ("lr_decay", "weight_decay", "initial_accumulator_value", "eps")
    return Adagrad(**{name: group[name] for name in names})


def _adafactor(group: Group, members: Members) -> Rule:
    eps1, eps2 = group["eps"]
    return Adafactor(
        tuple(tuple(p.shape) for p in members),
        eps=(torch.finfo(members[0].dtype).eps if eps1 is None else eps1, eps2),
        **{name: group[name] for name in ("beta2_decay", "d", "weight_decay")},
    )


READERS: Mapping[type[torch.optim.Optimizer], Reader] = MappingProxyType(
    {
        torch.optim.SGD: (_sgd, {"momentum": "momentum_buffer"}),
        torch.optim.Adam: (_adam, {"m": "exp_avg", "v": "exp_avg_sq"}),
        torch.optim.AdamW: (_adamw, {"m": "exp_avg", "v": "exp_avg_sq"}),
        torch.optim.RMSprop: (
            _rmsprop,
            {"v": "square_avg", "average": "grad_avg", "momentum": "momentum_buffer"},
        ),
        torch.optim.Adagrad: (_adagrad, {"sum": "sum"}),
        torch.optim.Adafactor: (
            _adafactor,
            {"rows": "row_var", "columns": "col_var", "v": "variance"},
        ),
    }
)
