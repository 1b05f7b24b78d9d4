"""What can be chosen about how influences are computed."""

from dataclasses import dataclass

from curate.influence.removal import REMOVALS
from curate.rules import Rule


@dataclass(frozen=True)
class Scoring:
    """How candidates are scored.

    removal: what leaving an example out does to its batch's mean, see `influence`.
    jump_bytes: None for influences linear in the removal; otherwise they are those of
        `exact_jump`, which takes this much memory for its gradients.
    mistaken_rule: score as if this had been the optimizer, to see what the mistake costs;
        the recorded run stays what it was.
    """

    removal: str = "renormalised"
    jump_bytes: int | None = None
    mistaken_rule: Rule | None = None

    def __post_init__(self) -> None:
        if self.removal not in REMOVALS:
            raise ValueError(f"removal must be one of {REMOVALS} but got {self.removal!r}")
