"""What can be chosen about how influences are computed."""

from dataclasses import dataclass

from curate.influence.curvature import CURVATURES
from curate.influence.removal import REMOVALS
from curate.rules import Rule


@dataclass(frozen=True)
class Scoring:
    """How candidates are scored.

    removal: what leaving an example out does to its batch's mean, see `influence`.
    curvature: what of the loss's curvature is followed, see `curvature`.
    jump_bytes: None for influences linear in the removal; otherwise they are those of
        `exact_jump`, which takes this much memory for its gradients.
    mistaken_rule: score as if this had been the optimizer, to see what the mistake costs;
        the recorded run stays what it was.
    """

    removal: str = "renormalised"
    curvature: str = "exact"
    jump_bytes: int | None = None
    mistaken_rule: Rule | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("removal", self.removal, REMOVALS),
            ("curvature", self.curvature, tuple(CURVATURES)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known} but got {value!r}")
