"""A live `torch.optim` optimizer as a rule and the state it is in."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curate.errors import OptimizerError
from curate.rules.adam import AdamW
from curate.rules.base import Rule, Slots, State
from curate.rules.registry import RULES, make_rule
from curate.rules.wrappers import Clipped, Grouped

READABLE = {rule.TORCH: rule for rule in RULES.values() if rule.TORCH is not None}
NOT_MODELED = ("amsgrad", "maximize")


@dataclass(frozen=True)
class LiveOptimizer:
    """What an optimizer would do next.

    parameters: those that train, group by group; theta is them, flattened, in
        this order. A parameter that was never updated while others were (it
        takes no part in the loss) counts as frozen.
    groups: where each group of `parameters` stands in `optimizer.param_groups`.
    rule: one `Grouped` rule, clipped if `clip_norm` was given.
    slots, step: the state beside theta. lrs: of every group, now.
    """

    parameters: tuple[tuple[Tensor, ...], ...]
    groups: tuple[int, ...]
    rule: Rule
    slots: Slots
    step: int
    lrs: tuple[float, ...]

    @property
    def unclipped(self) -> Rule:
        """The rule for gradients that are clipped already."""
        return self.rule.rule if isinstance(self.rule, Clipped) else self.rule

    def clipped(self, grad: Tensor) -> Tensor:
        """A gradient, shape (P,), as the rule clips it."""
        return self.rule.clip(grad) if isinstance(self.rule, Clipped) else grad

    def state(self) -> State:
        """The state from which the next step would be taken; copies, not views."""
        theta = _flat([p for group in self.parameters for p in group])
        return State(theta, self.slots, self.step)


def from_torch(
    optimizer: torch.optim.Optimizer,
    clip_norm: float | None = None,
    idle: Collection[Tensor] | None = None,
) -> LiveOptimizer:
    """Read an optimizer of a class in `READABLE`, without changing it.

    Wrappers that keep the real one as `.optimizer` (Accelerate, Lightning) are seen through.

    idle: parameters that the loss does not use, frozen until the optimizer has updated them. If
    None, those are that were never updated while others were.

    Raises:
        OptimizerError: another optimizer, an option that is not modeled, or
            parameters that have taken different numbers of steps.
    """
    optimizer = unwrap(optimizer)
    refuse_unmodeled(optimizer)
    trained = {k: members for k, members in enumerate(_trained(optimizer, idle)) if members}
    if not trained:
        raise OptimizerError("the optimizer has no parameter that requires a gradient.")
    rules: list[Rule] = []
    slots: dict[str, list[Tensor]] = {}
    for position, members in trained.items():
        group = optimizer.param_groups[position]
        kind = rule_of(optimizer, group)
        for p in members:
            alone = make_rule(kind, group, (tuple(p.shape),), p.dtype)
            for name, fresh in alone.init(_flat([p])).items():
                part = optimizer.state.get(p, {}).get(kind.SLOTS[name])
                slots.setdefault(f"{len(rules)}/{name}", []).append(fresh if part is None else part)
        shapes = tuple(tuple(p.shape) for p in members)
        rules.append(make_rule(kind, group, shapes, members[0].dtype))
    sizes = tuple(sum(p.numel() for p in members) for members in trained.values())
    rule = Grouped(tuple(rules), sizes)
    return LiveOptimizer(
        parameters=tuple(trained.values()),
        groups=tuple(trained),
        rule=rule if clip_norm is None else Clipped(rule, clip_norm),
        slots={name: _flat(parts) for name, parts in slots.items()},
        step=_steps_taken(
            [optimizer.state.get(p, {}) for members in trained.values() for p in members]
        ),
        lrs=tuple(float(optimizer.param_groups[k]["lr"]) for k in trained),
    )


def rule_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> type[Rule]:
    """The rule by which an optimizer of a class in `READABLE` moves a group's parameters."""
    return AdamW if group.get("decoupled_weight_decay") else READABLE[type(optimizer)]


def unwrap(optimizer: Any) -> torch.optim.Optimizer:
    """The `torch.optim` optimizer inside whatever wraps it."""
    while type(optimizer) not in READABLE and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptimizerError(f"a {type(optimizer).__name__} is not a torch.optim optimizer.")
    return optimizer


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([whole(t.detach()).to_dense().reshape(-1) for t in tensors])


def whole(tensor: Any) -> Tensor:
    """All of a tensor, of which this process may have a part (a DTensor).

    Waits for the other processes then.
    """
    made: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return made


def refuse_unmodeled(optimizer: torch.optim.Optimizer) -> None:
    """Raise OptimizerError if a rule does not model it, or one of its options."""
    kind = type(optimizer)
    if kind not in READABLE:
        names = ", ".join(sorted(readable.__name__ for readable in READABLE))
        raise OptimizerError(
            f"optimizer {kind.__name__} is not modeled; use torch.optim's {names}."
        )
    for option in NOT_MODELED:
        if any(group.get(option) for group in optimizer.param_groups):
            raise OptimizerError(f"{kind.__name__} with {option}=True is not modeled.")


def _trained(
    optimizer: torch.optim.Optimizer, idle: Collection[Tensor] | None
) -> list[tuple[Tensor, ...]]:
    """Group by group the parameters that are updated; SGD without momentum leaves no trace."""
    state, groups = optimizer.state, optimizer.param_groups
    if idle is not None:
        out = {*map(id, idle)}
        return [
            tuple(
                p for p in group["params"] if p.requires_grad and (state.get(p) or id(p) not in out)
            )
            for group in groups
        ]
    started = any(state.get(p) for group in groups for p in group["params"])
    always = [isinstance(optimizer, torch.optim.SGD) and not group["momentum"] for group in groups]
    return [
        tuple(
            p
            for p in group["params"]
            if p.requires_grad and (state.get(p) or not started or traceless)
        )
        for group, traceless in zip(groups, always, strict=True)
    ]


def _steps_taken(states: Sequence[Mapping[str, Any]]) -> int:
    counted = any("step" in state for state in states)
    counts = {int(state.get("step", 0)) for state in states} if counted else set()
    if len(counts) > 1:
        raise OptimizerError(
            f"parameters have taken different numbers of steps ({min(counts)} to {max(counts)}); "
            "an optimizer whose parameters did not all start together is not modeled."
        )
    if counts:
        return counts.pop()
    return int(any(state.get("momentum_buffer") is not None for state in states))
