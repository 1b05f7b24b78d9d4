"""The policies and objectives that recipes name, and the facts that other rooms ask of them.

A built-in name is short for a path, `package.module:name`. To add one, write that file and a line
here. Loads no torch.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Policy:
    """A way to value candidates.

    path: the class. labels: whether it compares class labels and fixed features. validation:
    whether it scores by the target rows. goes_back: whether it reads influences, for which the
    run is gone through backward.
    """

    path: str
    labels: bool = False
    validation: bool = False
    goes_back: bool = False


@dataclass(frozen=True)
class Objective:
    """A loss.

    path: what computes it. reads: what its examples are made of. label: what the label column
    holds, None if it is not read, "any" if only the data can tell. tokens: whether losses are sums
    over tokens, which are then counted; a row counts once otherwise. pairs: whether an example
    is two completions of a prompt.
    """

    path: str
    reads: Literal["features", "text"] = "features"
    label: Literal["classes", "numbers", "any"] | None = "any"
    tokens: bool = False
    pairs: bool = False


POLICIES = {
    "look_ahead": Policy("curate.selection.policies:LookAhead", validation=True, goes_back=True),
    "random": Policy("curate.selection.policies:Random"),
    "loss": Policy("curate.selection.policies:SmallLoss"),
    "knn_shapley": Policy("curate.selection.policies:KNNShapley", labels=True, validation=True),
}
OBJECTIVES = {
    "classification": Objective("curate.models:Classification", label="classes"),
    "regression": Objective("curate.models:Regression", label="numbers"),
    "causal_lm": Objective("curate.models:CausalLM", reads="text", label=None, tokens=True),
    "sequence_classification": Objective(
        "curate.models:SequenceClassification", reads="text", label="classes"
    ),
    "preference": Objective("curate.models:Preference", reads="text", label=None, pairs=True),
}


def find_objective(name: str) -> Objective:
    """A built-in objective, or one of the user's own at the path `name`, which reads features."""
    return OBJECTIVES.get(name) or Objective(name)
