"""Checks between the sections of a recipe."""

from typing import Any

import pytest

from curate.errors import RecipeError
from curate.recipe import check_recipe
from curate.recipe.names import OBJECTIVES, POLICIES
from tests.recipe.base import BASE, refused


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs=1.5", "training.epochs: must be a valid integer"),
        ("training.seed=true", "training.seed: must be a valid integer"),
        ("training=3", "training: must be a mapping of keys but got 3"),
        ("data.validation=null", "data.validation: is required: policy look_ahead scores by it"),
        ("data.columns.label=null", "data.columns.label: is required by objective classification"),
        ("trajectory.snapshots=2GB", "trajectory.snapshots: must be a number of states"),
        ("trajectory.tapes=some", "trajectory.tapes: "),
        ("trajectory.gradients=0.5", "trajectory.gradients: "),
        ("evaluation={}", "data.test: is required by evaluation"),
        ("evaluation.seeds=[1, 1]", "evaluation.seeds: must not repeat itself but got [1, 1]"),
        ("objective=mse", "objective: must be classification, regression, causal_lm, sequence_"),
    ],
)
def test_mistakes_are_named_by_their_key(override: str, message: str) -> None:
    assert message in refused(override)


TEXT: dict[str, Any] = {
    "data": {"train": "a", "validation": "b", "columns": {"text": "t", "label": "label"}},
    "model": {"pretrained": "m"},
    "objective": "causal_lm",
}
PAIRS = "data.columns={prompt: p, chosen: c, rejected: r}"
TWO = "data.validation={one: a, other: b}"


def test_label_noise_and_knn_shapley_need_classes() -> None:
    assert refused("objective=regression", "selection.policy=knn_shapley") == (
        "selection.policy: knn_shapley needs class labels and fixed features, so objective "
        "classification, but got regression."
    )
    assert refused("objective=a.b:c", "data.label_noise={fraction: 0.1}") == (
        "data.label_noise: needs class labels, so objective classification or "
        "sequence_classification, but got a.b:c."
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.precision=bf16", "training.dtype=float64"],
            "training.precision: bf16 is for dtype float32; remove one of the two.",
        ),
        (["training.checkpointing=true"], "training.checkpointing: is for pretrained models; one"),
        (
            ["data.validation=null", "selection={policy: knn_shapley, keep: {count: 1}}"],
            "data.validation: is required: policy knn_shapley scores by it.",
        ),
        (
            ["data.validation=null", "selection.policy=random"],
            "data.validation: is required by selection.keep auto, which is judged on it.",
        ),
        (
            ["selection.per=token"],
            "selection.per: token needs losses that are sums over tokens, so objective causal_lm; "
            "in classification every row counts once; use example.",
        ),
        (["selection.keep={tokens: 0.5}"], "every row counts once; use fraction or count."),
        (["selection.weights={one: 1}"], "selection.weights: are for several targets; name them"),
        (
            [TWO, "selection.weights={one: 1}"],
            "selection.weights: must be of the targets one, other, each once, but got one.",
        ),
        ([TWO, "selection.weights={}"], "the targets one, other, each once, but got none."),
        (
            [TWO, "selection={weights: {one: 1, other: 2}, policy: knn_shapley}"],
            "selection.weights: are for influences; knn_shapley pools the rows of all targets, so",
        ),
        (
            ["model={pretrained: m}"],
            "objective: a pretrained model has causal_lm or sequence_classification or preference",
        ),
        (
            ["data.columns={messages: m}"],
            "data.columns.features: is required by objective classification; messages is for "
            "causal_lm.",
        ),
    ],
)
def test_what_does_not_go_together_is_told(overrides: list[str], message: str) -> None:
    assert message in refused(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model={kind: mlp}"], "model: objective causal_lm needs `pretrained: PATH`, a model and"),
        (["data.columns={features: [x]}"], "data.columns.text: is required by objective causal_lm"),
        (
            ["objective=sequence_classification", "data.columns={messages: m}"],
            "data.columns.messages: is for objective causal_lm; sequence_classification needs text",
        ),
        (
            ["training.checkpointing=true", "selection.jump=exact"],
            "training.checkpointing: selection.jump exact goes example by example, where layers",
        ),
        (["objective=preference"], "data.columns.chosen: is required by objective preference."),
        ([PAIRS], "data.columns.chosen: is for objective preference; causal_lm needs text."),
        (
            [PAIRS, "objective=preference", "score={sample: 100}"],
            "score.sample: predicts from a row alone, and preferences are about a reference",
        ),
        (["training.beta=0.2"], "training.beta: is for objective preference but got causal_lm."),
        (
            ["objective=sequence_classification", "data.columns.label=null"],
            "data.columns.label: is required by objective sequence_classification.",
        ),
    ],
)
def test_text_needs_a_pretrained_model_and_an_objective_for_it(
    overrides: list[str], message: str
) -> None:
    check_recipe(TEXT)
    with pytest.raises(RecipeError, match=message):
        check_recipe(TEXT, overrides)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_policy_goes_with_the_objectives_that_its_facts_allow(
    policy: str, objective: str
) -> None:
    facts = OBJECTIVES[objective]
    raw = (TEXT if facts.reads == "text" else BASE) | {"objective": objective}
    pairs = [PAIRS] if facts.pairs else []
    if POLICIES[policy].labels and (facts.reads, facts.label) != ("features", "classes"):
        with pytest.raises(RecipeError, match=f"{policy} needs class labels and fixed features"):
            check_recipe(raw, [*pairs, f"selection.policy={policy}"])
    else:
        assert check_recipe(raw, [*pairs, f"selection.policy={policy}"]).selection.policy == policy


def test_only_cheap_policies_are_compared_with() -> None:
    evaluation = ["data.test={fraction: 0.2}", "evaluation.against=[everything, loss, look_ahead]"]
    assert refused(*evaluation).startswith(
        "evaluation.against.2: must be 'everything', 'random', 'loss' or 'knn_shapley' but got"
    )


def test_an_evaluation_that_compares_nothing_needs_no_test_rows() -> None:
    nothing = "evaluation.against=[]"
    assert check_recipe(BASE, [nothing]).compared() is None
    measured = check_recipe(BASE, [nothing, "data.test={fraction: 0.2}"])
    assert measured.compared() == measured.evaluation is not None
    assert refused("evaluation.against=[random]").startswith("data.test: is required by evaluation")
