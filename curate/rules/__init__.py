"""How parameters move: optimizers as pure, differentiable functions."""

from curate.rules.adafactor import Adafactor
from curate.rules.adagrad import Adagrad
from curate.rules.adam import Adam, AdamW
from curate.rules.base import Adjoint, HasVjp, Rule, Shapes, State, initial_state
from curate.rules.blocks import blocks_of, updated
from curate.rules.from_torch import LiveOptimizer, from_torch, unwrap, whole
from curate.rules.muon import Muon
from curate.rules.registry import RULES, make_rule
from curate.rules.rmsprop import RMSprop
from curate.rules.schedules import Schedule
from curate.rules.sgd import SGD
from curate.rules.wrappers import Clipped, Grouped, as_sgd

__all__ = [
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
    "Shapes",
    "State",
    "as_sgd",
    "blocks_of",
    "from_torch",
    "initial_state",
    "make_rule",
    "unwrap",
    "updated",
    "whole",
]
