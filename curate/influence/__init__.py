"""What mattered: adjoints of training, and the influence of every candidate."""

from curate.influence.adjoint import Adjoint, BackwardStep, backward_step, final_adjoint
from curate.influence.jump import exact_jump
from curate.influence.removal import REMOVALS, influence, reweighting
from curate.influence.targets import Target, mean_metrics, target_gradients
from curate.influence.window import WindowScores, score_window

__all__ = [
    "REMOVALS",
    "Adjoint",
    "BackwardStep",
    "Target",
    "WindowScores",
    "backward_step",
    "exact_jump",
    "final_adjoint",
    "influence",
    "mean_metrics",
    "reweighting",
    "score_window",
    "target_gradients",
]
