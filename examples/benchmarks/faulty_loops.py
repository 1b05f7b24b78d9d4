"""Training loops with a way of their own, for `faults.py`: each is one fault.

A loop is run twice: plain, for as many steps as a window has, and with look-ahead. It is silently
wrong if the window was simulated to end where the plain loop does not, without an error of
curate's own. To add one, write what it does and a line in `LOOPS`.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate import CurateError, LookAheadLoader

STEPS, SIZE = 4, 16
Batch = tuple[Tensor, Tensor]


class Loop:
    """A plain loop; subclasses override one thing."""

    lr = 0.2

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = self.net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr, momentum=0.9)

    def net(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def losses(self, model: Any, batch: Batch) -> Tensor:
        """What look-ahead is told."""
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def loss(self, batch: Batch) -> Tensor:
        """What is trained."""
        return self.losses(self.model, batch).mean()

    def after_backward(self, step: int, /) -> None:
        """Before the optimizer steps."""

    def after_step(self, step: int, /) -> None:
        """After it has."""

    def train(self, batches: Any) -> None:
        self.model.train()
        for step, batch in enumerate(batches):
            self.optimizer.zero_grad()
            self.loss(batch).backward()
            self.after_backward(step)
            self.optimizer.step()
            self.after_step(step)


class ScaledLoss(Loop):
    def loss(self, batch: Batch) -> Tensor:
        return 2 * super().loss(batch)


class ClassWeights(Loop):
    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1], weight=torch.tensor([1.0, 4.0]))


class SmoothedLabels(Loop):
    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1], label_smoothing=0.2)


class Penalty(Loop):
    def loss(self, batch: Batch) -> Tensor:
        return super().loss(batch) + 0.05 * sum(p.square().sum() for p in self.model.parameters())


class ChangedBatch(Loop):
    def loss(self, batch: Batch) -> Tensor:
        return super().loss((batch[0].flip(1), batch[1]))


class Clipped(Loop):
    def after_backward(self, _: int, /) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.05)


class Signs(Loop):
    def after_backward(self, _: int, /) -> None:
        for p in self.model.parameters():
            assert p.grad is not None
            p.grad.sign_()


class Noise(Loop):
    def after_backward(self, _: int, /) -> None:
        for p in self.model.parameters():
            assert p.grad is not None
            p.grad.add_(0.1 * torch.ones_like(p))


class RateByHand(Loop):
    def after_backward(self, step: int, /) -> None:
        self.optimizer.param_groups[0]["lr"] = 0.05 * (step + 1)


class Box(Loop):
    @torch.no_grad()
    def after_step(self, _: int, /) -> None:
        for p in self.model.parameters():
            p.clamp_(-0.2, 0.2)


class StepHook(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.optimizer.register_step_pre_hook(lambda *_: Signs.after_backward(self, 0))  # type: ignore[arg-type]


class StepReplaced(Loop):
    def __init__(self) -> None:
        super().__init__()
        plain = self.optimizer.step

        def step(*arguments: Any) -> None:
            plain(*arguments)
            Box.after_step(self, 0)  # type: ignore[arg-type]

        self.optimizer.step = step  # type: ignore[method-assign,assignment]


class GradientHook(Loop):
    """Followed: the hook runs in simulated passes, too."""

    def net(self) -> nn.Module:
        net = super().net()
        mask = torch.arange(4) % 2
        next(net.parameters()).register_hook(lambda grad: grad * mask)
        return net


class BackwardHook(Loop):
    def net(self) -> nn.Module:
        net = super().net()
        net.get_submodule("1").register_full_backward_hook(lambda *a: (3 * a[1][0],))
        return net


class Accumulated(Loop):
    def train(self, batches: Any) -> None:
        self.model.train()
        for step, batch in enumerate(batches):
            (self.loss(batch) / 2).backward()
            if step % 2:
                self.optimizer.step()
                self.optimizer.zero_grad()


class Annealed(Loop):
    """A model that counts its own passes."""

    def net(self) -> nn.Module:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer, self.calls = nn.Linear(4, 2), 0

            def forward(self, x: Tensor) -> Tensor:
                self.calls += self.training
                out: Tensor = self.layer(x) / (1 + 0.5**self.calls)
                return out

        return Net()


class Standardized(Loop):
    """A model that standardizes over the batch, in training only."""

    def net(self) -> nn.Module:
        class Net(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x - x.mean(dim=0) if self.training else x)

        return Net(4, 2)


class TwoHeads(Loop):
    """Two tasks in turn: each head is left out of every other step."""

    def net(self) -> nn.Module:
        return nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])

    def losses(self, model: Any, batch: Batch) -> Tensor:
        head = model[int(batch[0][0, 0] > 0)]
        return F.cross_entropy(head(batch[0]), batch[1], reduction="none")


class FrozenFirst(Loop):
    """Followed: what is unfrozen begins with a momentum of 0."""

    def __init__(self) -> None:
        super().__init__()
        layer = self.model.get_submodule("0")
        layer.requires_grad_(False)
        super().train(data(2, seed=5))
        layer.requires_grad_(True)


def data(count: int, seed: int = 0) -> list[Batch]:
    """Points labelled by a product of two coordinates."""
    x = np.random.default_rng(seed).normal(size=(count, SIZE, 4))
    return [
        (torch.from_numpy(part).float(), torch.from_numpy(part[:, 0] * part[:, 1] > 0).long())
        for part in x
    ]


def run(kind: type[Loop], _: Path) -> str:
    """What is silently wrong with look-ahead in this loop."""
    (target,) = data(1, seed=9)
    plain = kind()
    plain.train(data(STEPS))
    with torch.no_grad():
        right = float(plain.losses(plain.model.eval(), target).mean())
    loop = kind()
    batches = data(3 * STEPS)
    try:
        chosen = LookAheadLoader(
            batches, loop.model, loop.optimizer, loop.losses, target, horizon=STEPS, keep=0.5
        )
        loop.train(chosen)
    except CurateError:
        return ""
    got = chosen.reports[0].target_loss
    if abs(got - right) < 1e-5 * abs(right):
        return ""
    return f"the window is simulated to end at {got:.6f}; trained it ends at {right:.6f}"


KINDS = (
    *(Loop, ScaledLoss, ClassWeights, SmoothedLabels, Penalty, ChangedBatch, Clipped, Signs, Noise),
    *(RateByHand, Box, StepHook, StepReplaced, GradientHook, BackwardHook, Accumulated, Annealed),
    *(Standardized, TwoHeads, FrozenFirst),
)
LOOPS: Mapping[str, Callable[[Path], str]] = MappingProxyType(
    {kind.__name__: functools.partial(run, kind) for kind in KINDS}
)
"""By what is overridden."""
