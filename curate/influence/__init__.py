"""What mattered: adjoints of training, and the influence of every candidate."""

from curate.influence.adjoint import final_adjoint
from curate.influence.differences import Differences
from curate.influence.error_proxy import ErrorProxy, WindowError, expected_error
from curate.influence.point import Point
from curate.influence.probes import Probing, as_probes, size_of
from curate.influence.removal import REMOVALS, Scoring, influence, leave_out, reweighting
from curate.influence.shortcut import Shortcut
from curate.influence.targets import (
    Groups,
    Target,
    mean_metrics,
    over_targets,
    row_metrics,
    target_gradients,
    target_graph,
    target_losses,
)
from curate.influence.window import WindowScores, score_window

__all__ = [
    "REMOVALS",
    "Differences",
    "ErrorProxy",
    "Groups",
    "Point",
    "Probing",
    "Scoring",
    "Shortcut",
    "Target",
    "WindowError",
    "WindowScores",
    "as_probes",
    "expected_error",
    "final_adjoint",
    "influence",
    "leave_out",
    "mean_metrics",
    "over_targets",
    "reweighting",
    "row_metrics",
    "score_window",
    "size_of",
    "target_gradients",
    "target_graph",
    "target_losses",
]
