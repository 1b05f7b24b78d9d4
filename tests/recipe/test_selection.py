"""The selection section."""

import pytest

from curate.recipe import Keep, check_recipe
from tests.recipe.base import BASE, refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selection.horizon=0", "selection.horizon: must be at least 1 but got 0; use `full`"),
        ("selection.horizn=3", "selection.horizn: unknown key; did you mean horizon?"),
        ("selection.keep={fraction: 0.5, count: 3}", "selection.keep: give exactly one"),
        ("selection.keep.fraction=0", "selection.keep.fraction: must be greater than 0"),
        ("selection.keep.fraction=1.5", "selection.keep.fraction: must be less than or equal to 1"),
        ("selection.policy=best", "selection.policy: must be 'look_ahead', 'random'"),
        ("selection.removal=loo", "selection.removal: must be 'renormalised' or 'fixed'"),
        ("selection.jump=high", "selection.jump: "),
        ("selection.keep=[", "not valid YAML"),
        ("selection.keep=500", "selection.keep: must be auto, a share above 0 and below 1, or a m"),
        ("selection.keep=500", "or a mapping such as {count: 500} but got 500"),
        ("selection.keep=1", "or a mapping such as {count: 500} but got 1"),  # one, or all?
        ("selection.keep=1.0", "{count: 500} but got 1.0"),
        ("selection.keep=0", "{count: 500} but got 0"),
        ("selection.keep=half", "{count: 500} but got 'half'"),
        ("selection={keep: auto, judge: false}", "selection: keep: auto is found by judging;"),
        (
            "selection={group_by: label, keep: {threshold: 0}}",
            "selection: group_by shares out a fraction, a count or tokens; it has no use for a thr",
        ),
        ("selection.weights={a: 0}", "selection: weights must not all be 0"),
        ("selection.weights={a: -1}", "selection.weights.a: must be greater than or equal to 0"),
        ("selection.keep={tokens: 1}", "selection.keep.tokens: must be a number of tokens, at le"),
    ],
)
def test_mistakes_are_named_by_their_key(override: str, message: str) -> None:
    assert message in refused(override)


def test_a_number_of_tokens_is_whole_and_a_share_is_not() -> None:
    assert repr(Keep.model_validate({"tokens": 2e6}).tokens) == "2000000"
    assert Keep.model_validate({"tokens": 0.5}).tokens == 0.5


def test_auto_is_a_word() -> None:
    keep = check_recipe(BASE, ["selection.keep=auto"]).selection.keep
    assert keep == check_recipe(BASE).selection.keep == Keep(auto=True)
    assert keep.model_dump() == "auto"


def test_scores_are_per_token_where_tokens_are_kept() -> None:
    text = ["model={pretrained: m}", "objective=causal_lm", "data.columns={text: t}"]
    assert check_recipe(BASE, text).selection.per == "example"
    assert check_recipe(BASE, [*text, "selection.keep={tokens: 9}"]).selection.per == "token"
    both = "selection={keep: {tokens: 9}, per: example}"
    assert check_recipe(BASE, [*text, both]).selection.per == "example"


@pytest.mark.parametrize("share", [0.7, 1e-3])
def test_a_share_alone_is_short_for_that_fraction(share: float) -> None:
    keep = check_recipe(BASE, [f"selection.keep={share}"]).selection.keep
    assert keep == Keep(fraction=share)
    assert keep.model_dump(exclude_none=True) == {"fraction": share}
