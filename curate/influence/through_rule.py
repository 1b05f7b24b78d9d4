"""Back through an optimizer's update alone: the first stage of a backward step.

No model is seen here. An elementwise rule is gone through block by block, so that what
autograd keeps of it, a dozen vectors, is that of a block and stays in the cache.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from curate.rules import Adjoint, Clipped, Grouped, HasVjp, Rule, State, blocks_of


def through_rule(
    rule: Rule, grad: Tensor, state: State, lrs: tuple[float, ...], adjoint: Adjoint
) -> tuple[Tensor, Adjoint]:
    """The adjoint of the state after `rule.update`, taken to what went into it.

    Args:
        grad: what the rule was given, shape (P,). state: before the update.
        adjoint: of the state after it, Q targets at once.

    Returns:
        the adjoint of `grad`, shape (Q, P), and of `state`, what passes through `grad` left out.
    """
    if isinstance(rule, Clipped):
        inner, direct = through_rule(rule.rule, rule.clip(grad), state, lrs, adjoint)
        (to_gradient,) = _by_autograd(lambda g: (rule.clip(g),), [grad], (inner,))
        return to_gradient, direct
    if isinstance(rule, Grouped):
        return _through_groups(rule, grad, state, lrs, adjoint)
    if rule.elementwise:
        return _in_blocks(rule, grad, state, lrs, adjoint)
    return _through_one(rule, grad, state, lrs, adjoint)


def _through_one(
    rule: Rule, grad: Tensor, state: State, lrs: tuple[float, ...], adjoint: Adjoint
) -> tuple[Tensor, Adjoint]:
    if isinstance(rule, HasVjp):
        return rule.vjp(grad, state, lrs, adjoint)

    def update(grad: Tensor, *before: Tensor) -> Sequence[Tensor]:
        return rule.update(grad, state.with_tensors(before), lrs).tensors()

    to_gradient, *direct = _by_autograd(update, [grad, *state.tensors()], adjoint)
    return to_gradient, tuple(direct)


def _by_autograd(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], cotangents: Adjoint
) -> list[Tensor]:
    """Vector-Jacobian products of Q cotangents in one pass: (Q, *output) -> (Q, *input)."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        outputs = function(*leaves)
    count = len(cotangents[0])
    batched = count > 1
    back = torch.autograd.grad(
        outputs,
        leaves,
        list(cotangents) if batched else [c[0] for c in cotangents],
        allow_unused=True,
        is_grads_batched=batched,
    )
    return [
        x.new_zeros(count, *x.shape) if g is None else (g if batched else g.unsqueeze(0))
        for g, x in zip(back, leaves, strict=True)
    ]


def _in_blocks(
    rule: Rule, grad: Tensor, state: State, lrs: tuple[float, ...], adjoint: Adjoint
) -> tuple[Tensor, Adjoint]:
    """Through an elementwise rule, a part of the parameters at a time."""
    parts = [*blocks_of(grad)]
    if len(parts) < 2:
        return _through_one(rule, grad, state, lrs, adjoint)
    shape = (len(adjoint[0]), len(grad))
    to_gradient, direct = grad.new_empty(shape), tuple(grad.new_empty(shape) for _ in adjoint)
    for part in parts:
        before = state.with_tensors(tuple(t[part] for t in state.tensors()))
        to_gradient[:, part], passed = _through_one(
            rule, grad[part], before, lrs, tuple(a[:, part] for a in adjoint)
        )
        for whole, piece in zip(direct, passed, strict=True):
            whole[:, part] = piece
    return to_gradient, direct


def _through_groups(
    rule: Grouped, grad: Tensor, state: State, lrs: tuple[float, ...], adjoint: Adjoint
) -> tuple[Tensor, Adjoint]:
    """Every group by its own rule; theta and its adjoint are the groups' side by side."""
    by_slot = dict(zip(sorted(state.slots), adjoint[1:], strict=True))
    by_theta = adjoint[0].split(rule.sizes, dim=1)
    to_gradients, to_thetas, to_slots = [], [], dict[str, Tensor]()
    for k, (group_rule, group_grad, before, group_lrs) in enumerate(rule.split(grad, state, lrs)):
        slots = [f"{k}/{name}" for name in sorted(before.slots)]
        after = (by_theta[k], *(by_slot[slot] for slot in slots))
        to_gradient, direct = through_rule(group_rule, group_grad, before, group_lrs, after)
        to_gradients.append(to_gradient)
        to_thetas.append(direct[0])
        to_slots |= zip(slots, direct[1:], strict=True)
    by_name = (to_slots[slot] for slot in sorted(to_slots))
    return torch.cat(to_gradients, dim=1), (torch.cat(to_thetas, dim=1), *by_name)
