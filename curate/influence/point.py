"""A step at some parameters: where gradients, slopes and products are taken."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curate.influence.kinks import Pieces, Seen
from curate.trajectory import Gradient, Step, Task, Watch, forward, gradient


@dataclass
class Point:
    """A step at parameters theta, shape (P,).

    origin: the point on whose pieces piecewise functions are kept (see `kinks`); None: they are
        on their own. Each chunk's pieces are found by a forward pass, and remembered where there
        is only one chunk.
    """

    task: Task
    theta: Tensor
    step: Step
    origin: "Point | None" = None
    _seen: list[Seen] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def kinked(self) -> bool | None:
        """Whether there are kinks, by the first of this rank's chunks; None if it has none."""
        chunks = self.task.chunks(self.step)
        return bool(self.pieces(chunks[0])) if chunks else None

    def pieces(self, chunk: slice) -> list[Seen]:
        """On which pieces the chunk's forward pass is at theta; empty if it has no kinks."""
        if self._seen is not None:
            return self._seen
        watching = Pieces()
        with self.task.model.at(self.theta, training=True) as module, watching:
            forward(self.task, module, self.step, chunk, exactly=True)
        if len(self.task.chunks(self.step)) == 1:
            self._seen = watching.seen
        return watching.seen

    def moved(self, direction: Tensor, reach: float, origin: "Point | None") -> "Point":
        """The step at theta + reach * direction."""
        theta = torch.add(self.theta, direction, alpha=reach)
        return replace(self, theta=theta, origin=origin)

    def reweighted(self, weights: Tensor) -> "Point":
        """The step with other weights, shape (n,); on the same pieces, which have none."""
        return replace(self, step=self.step.reweight(weights))

    def gradient(self, watch: Watch | None = None) -> Gradient:
        """The step's gradient, in the precision of the parameters."""
        return gradient(self.task, self.theta, self.step, exactly=True, watch=watch or self.staying)

    @contextmanager
    def staying(self, chunk: slice) -> Iterator[Callable[[Tensor], None]]:
        """Around a chunk's passes: on the pieces of `origin`. Gives what goes back."""
        with nullcontext() if self.origin is None else Pieces(self.origin.pieces(chunk)):
            yield go_back


def go_back(total: Tensor) -> None:
    """`total.backward()` without its first line, which would end the watch of a function mode.

    Such a mode has to see layers that are computed again on the way back.
    """
    run = torch.autograd.Variable._execution_engine.run_backward
    ones = (torch.ones_like(total),)
    run((total,), ones, False, False, (), allow_unreachable=True, accumulate_grad=True)
