"""The losses that a recipe can name. A new one is a file in this folder and a line in the table."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from curate.models.objectives.base import Objective
from curate.models.objectives.classification import Classification
from curate.models.objectives.labels import LabelsObjective
from curate.models.objectives.regression import Regression

OBJECTIVES: Mapping[str, Callable[[], Objective]] = MappingProxyType(
    {
        "classification": Classification,
        "regression": Regression,
        "causal_lm": partial(LabelsObjective, shifts=True),
        "sequence_classification": partial(LabelsObjective, shifts=False),
    }
)
