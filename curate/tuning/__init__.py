"""Horizon and learning rate, tuned together."""

from importlib.util import find_spec

from curate.errors import MissingExtraError

if find_spec("optuna") is None:
    raise MissingExtraError("optuna", "tuning", "tune")

from curate.tuning.grid import Grid, Pair
from curate.tuning.tune import Tuned, tune_job

__all__ = ["Grid", "Pair", "Tuned", "tune_job"]
