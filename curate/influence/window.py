"""Score a window: every candidate of K steps, against targets where the window ends."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from curate.errors import NonFiniteError
from curate.influence.adjoint import backward_step, final_adjoint
from curate.influence.jump import exact_jump
from curate.influence.removal import influence
from curate.influence.targets import Target, target_gradients
from curate.rules import Rule
from curate.trajectory import Recording, Task, ignore_step


@dataclass(frozen=True)
class WindowScores:
    """Influences of one window.

    influences: per step, shape (Q, n), float64, on the CPU; positive helps.
    derivatives: d_i that they were made of, per step, shape (Q, n), on the CPU.
    sizes: n_i, per step, shape (n,), on the CPU.
    target_losses: at the end of the window, shape (Q,).
    """

    influences: list[Tensor]
    derivatives: list[Tensor]
    sizes: list[Tensor]
    target_losses: Tensor


def score_window(
    task: Task,
    rule: Rule,
    recording: Recording,
    targets: Sequence[Target],
    *,
    removal: str = "renormalised",
    jump_bytes: int | None = None,
    first_step: int = 0,
    on_step: Callable[[], None] = ignore_step,
) -> WindowScores:
    """Influence of every candidate of every recorded step on the targets at its end.

    Goes through the recording backwards, once, all Q targets together. Time:
    one pass over the targets, then per step about 4 gradients (more with Q)
    and what the recording has to redo. Memory: the recording's snapshots, the
    adjoint (Q states) and the graph of one chunk.

    Args:
        removal: see `removal.influence`.
        jump_bytes: None for influences linear in the removal; otherwise they are those
            of `exact_jump`, which takes this much memory for its gradients.
        first_step: number of the window's first step in the run, for error messages.
        on_step: called after every step scored.

    Raises:
        NonFiniteError: a target loss or an influence is NaN or infinite.
    """
    losses, gradients = target_gradients(task.model, task.objective, targets, recording.final.theta)
    for target, loss in zip(targets, losses, strict=True):
        if not loss.isfinite():
            raise NonFiniteError(
                f"after step {first_step + len(recording.steps) - 1}: the loss of target "
                f"{target.name} is {float(loss)}; lower the learning rate."
            )
    adjoint = final_adjoint(recording.final, gradients)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for k, state in recording.backwards():
        step = recording.steps[k]
        back = backward_step(
            task, rule, state, step, adjoint, propagate=k > 0, tape=recording.take_tape(k)
        )
        if jump_bytes is None:
            scores = influence(back.derivatives, step.weights, back.sizes, removal).cpu()
        else:
            scores = exact_jump(
                task, rule, state, step, adjoint, mean=back.mean, losses=recording.losses[k],
                sizes=back.sizes, removal=removal, memory=jump_bytes,
            ).cpu()  # fmt: skip
        if not scores.isfinite().all():
            raise NonFiniteError(_non_finite_score(task, scores, back.adjoint, k, first_step))
        found.append((scores, back.derivatives.cpu(), back.sizes.cpu()))
        if back.adjoint is not None:
            adjoint = back.adjoint
        on_step()
    influences, derivatives, sizes = (list(part) for part in zip(*found[::-1], strict=True))
    return WindowScores(influences, derivatives, sizes, losses)


def _non_finite_score(
    task: Task, scores: Tensor, adjoint: tuple[Tensor, ...] | None, k: int, first_step: int
) -> str:
    bad = int((~scores.isfinite()).sum())
    where = ""
    if adjoint is not None and not adjoint[0].isfinite().all():
        index = int((~adjoint[0].isfinite()).any(dim=0).int().argmax())
        where = f", first in parameter {task.model.parameter_at(index)}"
    return (
        f"step {first_step + k}: {bad} of {scores.numel()} influences are not finite{where}; "
        "shorten selection.horizon or lower the learning rate."
    )
