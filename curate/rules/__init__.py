"""How parameters move: optimizers as pure, differentiable functions."""

from types import MappingProxyType

from curate.rules.adam import Adam, AdamW
from curate.rules.base import Rule, Slots, State, initial_state, safe_sqrt
from curate.rules.from_torch import LiveOptimizer, from_torch, unwrap
from curate.rules.schedules import DECAYS, Schedule
from curate.rules.sgd import SGD
from curate.rules.wrappers import Clipped, Grouped

RULES = MappingProxyType({"sgd": SGD, "adam": Adam, "adamw": AdamW})

__all__ = [
    "DECAYS",
    "RULES",
    "SGD",
    "Adam",
    "AdamW",
    "Clipped",
    "Grouped",
    "LiveOptimizer",
    "Rule",
    "Schedule",
    "Slots",
    "State",
    "from_torch",
    "initial_state",
    "safe_sqrt",
    "unwrap",
]
