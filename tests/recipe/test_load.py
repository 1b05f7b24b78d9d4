"""Recipes: loading, overriding, resolving, and writing."""

from pathlib import Path
from typing import Any

import pytest

from curate.errors import RecipeError
from curate.recipe import check_recipe, fingerprint, load_recipe, resolved, write_recipe
from curate.recipe.load import commented, dump, parse
from tests.recipe.base import BASE, refused

FULL: list[dict[str, Any]] = [
    BASE,
    BASE | {"model": {"factory": "a.b:c", "arguments": {"width": 3, "name": "1e-3"}}},
    BASE | {"model": {"kind": "cnn", "channels": [4]}, "trajectory": {"snapshots": 4}},
    BASE | {"trajectory": {"snapshots": "1MiB", "disk": "2.5GiB"}},
    BASE
    | {
        "training": {
            "optimizer": {
                "kind": "sgd",
                "lr": 1e-20,
                "momentum": 0.9,
                "nesterov": True,
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
]


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
        "a": 0.001,
        "b": "no",
        "c": 3,
        "d": "12:30",
        "e": True,
        "f": "2026-01-01",
        "g": None,
        "h": 0.5,
        "i": "1_0",
        "j": float("inf"),
    }


def test_dump_is_the_inverse_of_parse() -> None:
    value = {"a": 1e-20, "b": "1e-3", "c": "true", "d": None, "e": ["1", 1, "~", ""], "f": 1.0}
    assert parse(dump(value)) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a=1", "a: unknown key"),
        ("data.train.path.x=1", "data.train.path: must be a valid string but got a dict"),
        ("nonsense", "--set must look like a.b=value but got 'nonsense'"),
    ],
)
def test_wrong_overrides_are_told(override: str, message: str) -> None:
    assert message in refused(override)


HOSTILE = [
    *("a: b", "[x]", "# no", "two\nlines", "- -", "007", "yes", "null", "{}", ""),
    "\u2028\x07é猫🐈",
]


def test_a_commented_recipe_holds_the_same_values() -> None:
    recipe = {
        "data": {"train": "a #1.csv", "columns": {"features": HOSTILE, "label": HOSTILE[3]}},
        "objective": "classification",
        "training": {"epochs": 3, "optimizer": {"groups": [{"match": ["*"], "lr": 1e-5}]}},
        "score": dict.fromkeys(HOSTILE, 1),
    }
    keys = ["", "data", "data.train", "data.columns", "objective", "training.epochs"]
    text = commented(recipe, {key: f"{key}: {' '.join(HOSTILE) * 3}" for key in keys})
    assert parse(text) == recipe
    assert text.startswith("# : a: b")
    assert all(text.count(f"# {key}: a: b") == 1 for key in keys[1:])


def test_a_short_note_stands_beside_its_key() -> None:
    recipe = {"training": {"epochs": 3, "schedule": {"kind": "linear", "warmup_steps": 2}}}
    text = commented(recipe, {"training.epochs": "passes", "training.schedule": "up " * 30})
    assert text.splitlines() == [
        *("", "training:", "  epochs: 3  # passes", f"  # {'up ' * 29}up"),
        "  schedule: {kind: linear, warmup_steps: 2}",
    ]


def test_data_is_not_a_recipe(tmp_path: Path) -> None:
    for name in ("rows.csv", "rows.PARQUET"):
        path = tmp_path / name
        path.write_bytes(b"\xffPAR1")
        with pytest.raises(
            RecipeError, match=rf"{name}: is data, not a recipe; curate init .*{name}"
        ):
            load_recipe(path)
