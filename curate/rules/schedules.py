"""Learning-rate schedules: a multiplier for every step of a run of known length."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType


def _constant(_progress: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


DECAYS: MappingProxyType[str, Callable[[float], float]] = MappingProxyType(
    {"constant": _constant, "linear": _linear, "cosine": _cosine}
)


@dataclass(frozen=True)
class Schedule:
    """Warm up linearly, then decay from 1 to 0: the schedules of `transformers.optimization`.

    During warm-up the multiplier of step t (from 0) is t / warmup_steps; after
    it, decay((t - warmup_steps) / (total_steps - warmup_steps)).
    """

    kind: str = "constant"
    warmup_steps: int = 0

    def multiplier(self, step: int, total_steps: int) -> float:
        """What the base learning rate is multiplied by at `step` (from 0)."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        return DECAYS[self.kind](progress)
