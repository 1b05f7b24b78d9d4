"""What a loop's state is made of, so that another process can go on as if nothing had happened."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from curate.errors import DataError, OptionError
from curate.influence import Target, WindowScores
from curate.integrations.columns import read_column
from curate.integrations.options import Options, Read
from curate.integrations.place import content_of
from curate.integrations.training import LiveTraining
from curate.integrations.window import Window
from curate.rules import State
from curate.runtime.files import Tree, digest_of
from curate.selection.driver import Decided
from curate.selection.judge import Judge, Judged

FORMAT = 1
"""Counts the kinds of states that there have been."""


def made(
    training: LiveTraining, options: Options, targets: Sequence[Target], accumulate: int
) -> dict[str, Any]:
    """What must be the same for a state to go on from, in plain values by name."""
    parameters = sorted((name, [*p.shape]) for name, p in training.parameters().items())
    return {
        "format": FORMAT,
        "horizon": options.horizon,
        "keep": options.keep,
        "rounds": options.scored_rounds,
        "effort": options.scored_effort,
        "removal": options.removal,
        "label": _called(options.label),
        "group_by": _called(options.group_by),
        "seed": options.seed,
        "accumulate": accumulate,
        "process": f"{training.ranks.rank} of {training.ranks.size}",
        "targets": {target.name: len(target.examples) for target in targets},
        "optimizer": type(training.optimizer).__name__,
        "parameters": f"{len(parameters)} ({digest_of(parameters)})",
    }


def require_made(state: Any, ours: Mapping[str, Any]) -> None:
    """Raise OptionError unless a state is one of ours, and of the same loop."""
    theirs = state.get("made") if isinstance(state, Mapping) else None
    if not isinstance(theirs, Mapping):
        raise OptionError("this is no state of look-ahead; give what its state_dict() gave.")
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise OptionError(
                f"the state is of a loop with {name} {theirs.get(name)!r}, and this one has "
                f"{value!r}; resume with what it began with, or begin without the state."
            )


def measurable(judge: Judge, state: State, losses: Tensor | None, first_step: int) -> Decided:
    """A window that another process decided on, as far as it takes to measure what it did.

    losses: of the judge's targets at its end, trained on everything, shape (Q,); None where
    nobody went there, so that there is nothing to measure.
    """
    if losses is None:
        return Decided(judge, Judged([], None, [], None, []), first_step, [], [])
    scores = WindowScores([], [], [], losses.to(state.theta.device), [], judge.targets, [])
    return Decided(judge, Judged([], state, [], scores, []), first_step, [], [])


def rest_of(window: Window | None, row: Read | None) -> Tree:
    """The weights of batches that the loop was not given yet, and a digest of these batches."""
    if window is None or not window.ahead:
        return None
    content = window.content
    if not window.restored:
        content = _content(window.batches[window.handed :], row)
    weights = [torch.from_numpy(part.copy()) for part in window.weights[window.handed :]]
    return {
        "weights": weights,
        "factors": window.factors[window.handed :],
        "content": content,
    }


def found_again(rest: Tree, decided: Decided | None) -> Window | None:
    """The rest of a window, whose batches are still to be drawn."""
    if rest is None:
        return None
    weights = [part.cpu().numpy() for part in rest["weights"]]
    return Window((), weights, rest["factors"], decided, restored=True, content=rest["content"])


def take_up(window: Window, batches: Sequence[Any], row: Read | None) -> None:
    """Go on in a window with batches that were drawn again.

    Raises:
        DataError: they are not those that were decided on.
    """
    if len(batches) < window.ahead or _content(batches, row) != window.content:
        raise DataError(
            f"the loader's next {window.ahead} batches are not those that were decided on before "
            "the state was taken; give the same data in the same order (a sampler or generator "
            "seeded alike). If only what is drawn at random for a row differs, name the rows by "
            "`row`, and they are compared instead."
        )
    window.batches, window.restored = batches, False


def _content(batches: Sequence[Any], row: Read | None) -> str:
    """A digest of batches: of their rows' ids if they have any, else of all that they hold."""
    return content_of(batches if row is None else [read_column(row, b, "row") for b in batches])


def _called(read: Read | None) -> str | None:
    return read if read is None or isinstance(read, str) else "a function"
