"""Malformed recipes and data: one line each, exit code 2, nothing left behind."""

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.job import RECIPE, curate, rows, sets

NAN = float("nan")
GOOD_X = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]]
BAD_DATA: list[tuple[dict[str, Any], str]] = [
    ({"x": GOOD_X, "label": [0, 1, None, 0]}, "column label is null at row 2"),
    ({"x": [*GOOD_X[:3], [NAN, 0.0]], "label": [0, 1, 0, 1]}, "x is NaN or infinite at row 3"),
    ({"x": GOOD_X, "label": [0, 1, -1, 0]}, "column label is -1 at row 2"),
    ({"x": GOOD_X, "label": [0, 1, 90, 0]}, "the largest is 90 (row 2)"),
    ({"x": GOOD_X, "y": [0, 1, 1, 0]}, "there is no column label; it has x, y"),
    ({"y": GOOD_X, "label": [0, 1, 1, 0]}, "no column matches x; it has y, label"),
    ({"x": [[1.0], [1.0, 2.0]], "label": [0, 1]}, "different lengths, first at row 1"),
    ({"x": ["a", "b", "c", "d"], "label": [0, 1, 1, 0]}, "features must be numbers"),
    ({"x": [b"a", b"b", b"c", b"d"], "label": [0, 1, 1, 0]}, "row 0: not an image"),
    ({"x": GOOD_X, "label": [0.5, 1.0, 1.0, 0.0]}, "class labels must be ints"),
    ({"x": GOOD_X, "label": ["a"] * 4}, "column label has one class"),
    ({"x": [], "label": []}, "has no rows"),
]
BAD_RECIPES: list[tuple[str, str]] = [
    ("selection.horizon=0", "selection.horizon: must be at least 1 but got 0"),
    ("selection.curvature=exact", "selection.curvature: is gone: it is always"),
    ("trajectory.tapes=1MiB", "trajectory.tapes: is gone: nothing of a step"),
    ("selection.probing=-1", "selection.probing: must be greater than or equal to 0 but got -1"),
    ("selection.probing=.inf", "selection.probing: must be"),
    ("selection.probing=much", "selection.probing: must be a valid number"),
    ("selection.kep=1", "selection.kep: unknown key; did you mean keep?"),
    ("selection.keep={}", "selection.keep: give exactly one of"),
    ("selection.keep={count: 1000}", "selection.keep.count: is 1000, but there are only 72"),
    ("selection.keep={tokens: 100}", "selection.keep.tokens: needs losses that are sums over toke"),
    ("selection.per=token", "selection.per: token needs losses that are sums over tokens, so obj"),
    ("selection.per=row", "selection.per: must be 'example' or 'token' but got 'row'"),
    ("selection.aggregate=min", "selection.aggregate: is gone: several targets are averaged, by s"),
    ("selection.stride=4", "selection.stride: is gone: every window is decided whole; remove it."),
    ("training.autocast=bfloat16", "training.autocast: is gone: write training.precision: bf16."),
    ("selection.weights={validation: 1}", "selection.weights: are for several targets; name them"),
    ("selection.weights={a: 0, b: 0.0}", "weights must not all be 0"),
    ("selection.weights={a: -1, b: 2}", "selection.weights.a: must be greater than or equal to 0"),
    ("selection.weights={a: .nan}", "selection.weights.a: must be a finit"),
    ("selection.weights=3", "selection.weights: must be a mapping of keys"),
    ("selection.group_by=nope", "selection.group_by: there is no column nope"),
    ("selection.group_by=x", "groups must be ints or strings"),
    ("training.optimizer.kind=adadelta", "kind must be sgd, adam, adamw, rmsprop, adagr"),
    ("training.optimizer.amsgrad=true", "amsgrad is not modeled"),
    ("training.optimizer.groups=[{match: [nope]}]", "matches no parameter"),
    ("training.optimizer.kind=muon", "training.optimizer: Muon is for matrices, but a parameter "),
    (
        "training.optimizer.groups=[{match: ['*.weight'], kind: muon}, {match: ['*'], kind: muon}]",
        "training.optimizer.groups.1: Muon is for matrices, but a parameter has shape (8,); give",
    ),
    ("trajectory.snapshots=0", "must be a number of states, at least 1"),
    ("trajectory.snapshots=0.1KiB", "holds no training state; one takes"),
    ("trajectory.disk=0.1KiB", "trajectory.disk: 0.1KiB holds no training state; one takes"),
    ("trajectory.disk=lots", "trajectory.disk: "),
    ("model={factory: nowhere:net}", "cannot import nowhere"),
    ("model={kind: cnn}", "needs images"),
    ("data.train=gone.parquet", "gone.parquet: no such file"),
    ("data.validation=gone.jsonl", "gone.jsonl: no such file"),
    ("data.validation.fraction=0.001", "of 120 rows is none"),
    (
        "data={train: rows.parquet, columns: {features: x}, validation: {fraction: 0.6}, "
        "test: {fraction: 0.5}}",
        "nothing is left to choose from",
    ),
    ("evaluation.against=[oracle]", "evaluation.against.0: must be 'everything'"),
    ("training.epochs=100000000000", "more than the 10000000 that can be planned"),
    ("training.optimizer.lr=1e300", "training.optimizer.lr: must be less than or equal to"),
    ("model.hidden=[99999999999]", "model: mlp raised RuntimeError"),
    ("nonsense", "--set must look like a.b=value"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all recipes: what is refused leaves nothing behind."""
    folder = tmp_path_factory.mktemp("malformed")
    with chdir(folder):
        rows().to_parquet("rows.parquet")
        Path("recipe.yaml").write_text(RECIPE)
        yield folder


@pytest.mark.parametrize(("override", "message"), BAD_RECIPES)
def test_malformed_recipes_are_refused_in_one_line(
    place: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused("recipe.yaml", [override], message, capsys)


BOTH = "data.validation={a: rows.parquet, b: rows.parquet}"
BAD_TARGETS: list[tuple[list[str], str]] = [
    (["selection.weights={a: 1}"], "weights: must be of the targets a, b, each once, but got a."),
    (["selection.weights={}"], "targets a, b, each once, but got none."),
    (["selection.weights={a: 1, b: 1, c: 1}"], "but got a, b, c."),
    (
        ["selection={weights: {a: 1, b: 1}, policy: knn_shapley}"],
        "selection.weights: are for influences; knn_shapley pools the rows of all targets",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), BAD_TARGETS)
def test_malformed_weights_are_refused_in_one_line(
    place: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused("recipe.yaml", [BOTH, *overrides], message, capsys)


@pytest.mark.parametrize(("columns", "message"), BAD_DATA)
def test_malformed_data_is_refused_in_one_line(
    here: Path, columns: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Dataset.from_dict(columns).to_parquet("bad.parquet")
    data = (
        "{train: bad.parquet, columns: {features: x}, validation: bad.parquet, test: bad.parquet}"
    )
    refused("recipe.yaml", [f"data={data}"], message, capsys)


def refused(
    recipe: str, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line that has the message, with exit code 2, and nothing is left behind."""
    before = sorted(Path().iterdir())
    capsys.readouterr()
    assert curate(recipe, "--out", "some/out", *sets(*overrides)) == 2
    assert sorted(Path().iterdir()) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("curate: ")
    assert captured.err.count("\n") == 1, captured.err
    assert message in captured.err
