"""The tune section."""

import pytest

from curate.recipe import check_recipe
from tests.recipe.base import BASE, refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tune.horizons=[0]", "tune.horizons: must be a list of numbers of steps, at least 1, or"),
        ("tune.horizons=[1, 1]", "tune.horizons: must not repeat itself but got [1, 1]"),
        ("tune.learning_rates=[0]", "tune.learning_rates.0: must be greater than 0 but got 0"),
        (
            "tune.learning_rates=[0.1, 0.1000000001]",
            "tune.learning_rates: must not repeat itself within six digits but got [0.1, 0.10000",
        ),
        ("tune.seeds=[]", "tune.seeds: must have at least 1 item(s) but got []"),
        ("tune.budget=2", "tune.budget: must be less than or equal to 1 but got 2"),
        ("tune.trust=0", "tune.trust: must be greater than 0 but got 0"),
    ],
)
def test_mistakes_are_named_by_their_key(override: str, message: str) -> None:
    assert message in refused(override)


def test_horizons_may_be_the_whole_run() -> None:
    tune = check_recipe(BASE, ["tune={horizons: [1, full], learning_rates: [0.1, 0.2]}"]).tune
    assert tune is not None
    assert tune.horizons == [1, "full"]
