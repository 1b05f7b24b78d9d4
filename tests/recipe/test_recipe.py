"""Recipes: loading, overriding, resolving, and every message a mistake gets."""

from pathlib import Path
from typing import Any

import pytest

from curate.errors import RecipeError
from curate.recipe import check_recipe, fingerprint, load_recipe, resolved, write_recipe
from curate.recipe.load import dump, parse

BASE: dict[str, Any] = {
    "data": {
        "train": "sklearn:digits",
        "columns": {"features": ["features"]},
        "validation": {"fraction": 0.2},
    }
}

FULL: list[dict[str, Any]] = [
    BASE,
    BASE | {"model": {"factory": "a.b:c", "arguments": {"width": 3, "name": "1e-3"}}},
    BASE | {"model": {"kind": "cnn", "channels": [4]}, "trajectory": {"snapshots": 4}},
    BASE | {"trajectory": {"snapshots": "1MiB", "disk": "2.5GiB"}},
    BASE
    | {
        "training": {
            "optimizer": {
                "kind": "sgd", "lr": 1e-20, "momentum": 0.9, "nesterov": True,
                "groups": [{"match": ["*.bias"], "lr": 0.1, "weight_decay": 0.0}],
            },
            "schedule": {"kind": "cosine", "warmup_steps": 3},
            "clip_norm": 1.0,
        },
        "selection": {"horizon": 7, "keep": {"count": 10}, "group_by": "label"},
    },
    BASE
    | {
        "training": {
            "optimizer": {
                "kind": "adafactor",
                "groups": [
                    {"match": ["*.weight"], "kind": "muon", "lr": 0.02, "ns_steps": 3},
                    {"match": ["0.*"], "lr": 0.1},
                    {"match": ["3.bias"], "kind": "sgd", "lr": 0.1, "momentum": 0.9},
                ],
            }
        }
    },
    BASE | {"selection": {"keep": {"threshold": -0.5}, "policy": "loss"}},
    {
        "data": {"train": "x", "validation": "y", "columns": {"text": "t", "label": None}},
        "model": {"pretrained": "m", "lora": {"rank": 4}},
        "objective": "causal_lm",
        "tune": {"horizons": [1, "full"]},
    },
]  # fmt: skip


@pytest.mark.parametrize("raw", FULL)
def test_resolved_recipe_reads_back_as_itself(raw: dict[str, Any], tmp_path: Path) -> None:
    recipe = check_recipe(raw)
    (tmp_path / "r.yaml").write_text(write_recipe(recipe))
    again = load_recipe(tmp_path / "r.yaml")
    assert again == recipe
    assert fingerprint(again) == fingerprint(recipe)
    assert resolved(again) == resolved(recipe)


def test_defaults_then_file_then_set() -> None:
    recipe = check_recipe(
        BASE | {"training": {"epochs": 3}},
        ["training.epochs=5", "training.optimizer.lr=3e-3", "data.columns.features=[a, b]"],
    )
    assert recipe.training.epochs == 5
    assert recipe.training.optimizer.lr == 3e-3
    assert recipe.training.optimizer.kind == "adamw"
    assert recipe.training.batch_size == 32
    assert recipe.data.columns.features == ["a", "b"]


def test_overrides_are_typed_and_leave_the_file_alone() -> None:
    raw = {"data": {**BASE["data"]}}
    recipe = check_recipe(raw, ["data.train.split=validation", "selection.horizon=3"])
    assert recipe.data.train.split == "validation"
    assert recipe.data.train.path == "sklearn:digits"
    assert raw["data"]["train"] == "sklearn:digits"
    with pytest.raises(RecipeError, match=r"training.epochs: must be a valid integer but got '3'"):
        check_recipe(BASE, ["training.epochs='3'"])


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
        ("training.optimizer.kind=lion", "training.optimizer: kind must be sgd, adam, adamw, rms"),
        ("training.optimizer.momentum=0.9", "training.optimizer.momentum: does not belong here;"),
        ("training.optimizer={kind: adafactor, eps: [0, 1]}", "eps: must be two numbers, the fir"),
        ("training.optimizer={kind: adafactor, eps: [1]}", "eps: must be two numbers, the first"),
        ("training.optimizer={kind: adafactor, d: 0.5}", "optimizer.d: must be greater than or"),
        ("training.optimizer={kind: muon, ns_steps: 100}", "optimizer.ns_steps: must be less"),
        ("training.optimizer={kind: muon, adjust_lr_fn: x}", "adjust_lr_fn: must be 'original'"),
        ("training.optimizer.groups=[{match: [a], kind: lion}]",
         "training.optimizer.groups.0: kind must be sgd, .* adafactor or muon; no other"),
        ("training.optimizer.groups=[{match: [a], kind: ''}]", "groups.0: kind must be sgd, adam"),
        ("training.optimizer.groups=[{match: [a], kind: null}]", "groups.0: kind must be sgd, ad"),
        ("training.optimizer.kind=null", "training.optimizer: kind must be sgd, adam, adamw"),
        ("training.optimizer.kind=[1]", "training.optimizer: kind must be sgd, adam, adamw"),
        ("training.optimizer.groups=[{match: [a], momentum: 0.5}]",
         "training.optimizer.groups.0: momentum needs a `kind` beside it"),
        ("training.optimizer.groups=[{match: [a]}, {kind: muon}]",
         "training.optimizer.groups.1.match: is required"),
        ("training.optimizer.groups=[{match: [a], kind: sgd}]", "groups.0.lr: is required"),
        ("training.optimizer.groups=[{match: [a], kind: muon, groups: []}]",
         "training.optimizer.groups.0.groups: does not belong here; remove it"),
        ("training.optimizer.groups=[{match: [a], kind: adam, amsgrad: true}]",
         "training.optimizer.groups.0: amsgrad is not modeled"),
        ("training.optimizer.groups=[{match: [a], kind: muon, alpha: 1}]", "alpha: does not belo"),
        ("training.optimizer.amsgrad=true", "training.optimizer: amsgrad is not modeled"),
        ("training.optimizer.maximize=true", "training.optimizer: maximize is not modeled"),
        ("training.optimizer.lr=-1", "training.optimizer.lr: must be greater than 0 but got -1"),
        ("training.optimizer.lr=.nan", "training.optimizer.lr: must be a finite number"),
        ("training.optimizer.eps=0", "training.optimizer.eps: must be greater than 0"),
        ("training.optimizer.betas=[0.9]", "training.optimizer.betas: must have at least 2 item"),
        ("training.optimizer={kind: sgd}", "training.optimizer.lr: is required"),
        ("training.optimizer={kind: sgd, lr: 1, nesterov: true}", "nesterov needs a momentum"),
        ("training.schedule.kind=step", "training.schedule.kind: must be 'constant', 'linear'"),
        ("training.epochs=1.5", "training.epochs: must be a valid integer"),
        ("training.seed=true", "training.seed: must be a valid integer"),
        ("training=3", "training: must be a mapping of keys but got 3"),
        ("data.validation=null", "data.validation: is required: policy look_ahead scores by it"),
        ("data.validation.fraction=1.5", "data.validation.fraction: must be less than 1"),
        ("data.validation={a: {pth: x}}", "data.validation.a.pth: unknown key"),
        ("data.columns.label=null", "data.columns.label: is required by objective classification"),
        ("data.columns.features=[]", "data.columns.features: must have at least 1 item"),
        ("data.label_noise.fraction=2", "data.label_noise.fraction: must be less than 1"),
        ("model.kind=rnn", "model: must have `kind: mlp`"),
        ("model.hidden=[0]", "model.hidden.0: must be greater than or equal to 1"),
        ("trajectory.snapshots=2GB", "trajectory.snapshots: must be a number of states"),
        ("trajectory.tapes=some", "trajectory.tapes: "),
        ("trajectory.gradients=0.5", "trajectory.gradients: "),
        ("selection.jump=high", "selection.jump: "),
        ("evaluation={}", "data.test: is required by evaluation"),
        ("evaluation.seeds=[1, 1]", r"evaluation.seeds: must not repeat itself but got \[1, 1\]"),
        ("objective=mse", "objective: must be classification, regression, causal_lm, sequence_"),
        ("a=1", "a: unknown key"),
        ("data.train.path.x=1", None),
        ("nonsense", "--set must look like a.b=value but got 'nonsense'"),
        ("selection.keep=[", "not valid YAML"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_their_key(override: str, message: str | None) -> None:
    if message is None:
        override, message = override, ""
    with pytest.raises(RecipeError) as error:
        check_recipe(BASE, [override])
    text = str(error.value)
    assert "\n" not in text
    import re

    assert re.search(message.replace("?", r"\?") if "?" in message else message, text), text


def test_knn_shapley_and_label_noise_need_classes() -> None:
    for extra in (["selection.policy=knn_shapley"], ["data.label_noise.fraction=0.1"]):
        with pytest.raises(RecipeError, match="needs class labels"):
            check_recipe(BASE, ["objective=regression", *extra])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this is empty"),
        ("- 1", "this is a list"),
        ("a: 1\na: 2", "line 2: key a is given twice"),
        ("a: [", "line 1: not valid YAML"),
        ("1: 2", "line 1: keys must be strings but got 1"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("data: {}", "data.train: is required"),
    ],
)
def test_files_that_are_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(path)
    assert str(error.value).startswith(str(path))


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(RecipeError, match=r"nowhere.yaml: cannot read the recipe: No such file"):
        load_recipe("nowhere.yaml")


def test_yaml_means_what_people_mean() -> None:
    text = "a: 1e-3\nb: no\nc: 3\nd: 12:30\ne: true\nf: 2026-01-01\ng:\nh: .5\ni: 1_0\nj: .inf"
    assert parse(text) == {
        "a": 0.001, "b": "no", "c": 3, "d": "12:30", "e": True, "f": "2026-01-01",
        "g": None, "h": 0.5, "i": "1_0", "j": float("inf"),
    }  # fmt: skip


def test_dump_is_the_inverse_of_parse() -> None:
    value = {"a": 1e-20, "b": "1e-3", "c": "true", "d": None, "e": ["1", 1, "~", ""], "f": 1.0}
    assert parse(dump(value)) == value
