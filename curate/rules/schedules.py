"""Learning-rate schedules: a multiplier for every step of a run of known length."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

DECAYS: MappingProxyType[str, Callable[[float], float]] = MappingProxyType(
    {
        "constant": lambda _: 1.0,
        "linear": lambda progress: 1.0 - progress,
        "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    }
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
        """The factor on the base learning rate at `step` (from 0)."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        return DECAYS[self.kind](progress)
