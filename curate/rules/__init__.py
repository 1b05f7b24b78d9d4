"""How parameters move: optimizers as pure, differentiable functions."""

from types import MappingProxyType

from curate.rules.adafactor import Adafactor
from curate.rules.adagrad import Adagrad
from curate.rules.adam import Adam, AdamW
from curate.rules.base import (
    Adjoint,
    HasVjp,
    Rule,
    Shape,
    Shapes,
    Slots,
    State,
    initial_state,
    safe_sqrt,
)
from curate.rules.from_torch import LiveOptimizer, from_torch, unwrap
from curate.rules.muon import Muon
from curate.rules.rmsprop import RMSprop
from curate.rules.schedules import DECAYS, Schedule
from curate.rules.sgd import SGD
from curate.rules.wrappers import Clipped, Grouped, as_sgd

RULES = MappingProxyType(
    {
        "sgd": SGD,
        "adam": Adam,
        "adamw": AdamW,
        "rmsprop": RMSprop,
        "adagrad": Adagrad,
        "adafactor": Adafactor,
        "muon": Muon,
    }
)

__all__ = [
    "DECAYS",
    "RULES",
    "SGD",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adjoint",
    "Clipped",
    "Grouped",
    "HasVjp",
    "LiveOptimizer",
    "Muon",
    "RMSprop",
    "Rule",
    "Schedule",
    "Shape",
    "Shapes",
    "Slots",
    "State",
    "as_sgd",
    "from_torch",
    "initial_state",
    "safe_sqrt",
    "unwrap",
]
