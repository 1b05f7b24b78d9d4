"""The recipe of a pair."""

import pytest

from curate.recipe import check_recipe
from curate.tuning.grid import Pair
from curate.tuning.trials import with_pair


def test_groups_keep_their_ratio() -> None:
    given = check_recipe(
        {
            "data": {
                "train": "x.parquet",
                "validation": {"fraction": 0.2},
                "columns": {"features": ["x"], "label": "y"},
            },
            "training": {
                "optimizer": {
                    "kind": "adamw",
                    "lr": 1e-2,
                    "groups": [
                        {"match": ["a"], "lr": 1e-3},
                        {"match": ["b"], "weight_decay": 0.0},
                        {"match": ["c"], "kind": "sgd", "lr": 0.1},
                    ],
                }
            },
            "selection": {"horizon": 16},
        }
    )
    changed = with_pair(given, Pair(8, 2e-2), 100)
    rates = [group.lr for group in changed.training.optimizer.groups]
    assert rates == [pytest.approx(2e-3), None, pytest.approx(0.2)]
    assert changed.selection.horizon == 8
    assert with_pair(given, Pair(100, 1e-2), 100).selection.horizon == "full"
