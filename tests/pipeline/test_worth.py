"""What choosing is worth: judged by rows that did not choose, against plain torch."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from datasets import Dataset, load_dataset

from curate.output.closing import closing_lines
from curate.output.verdict import AS_READ, repeats_line, worth_line
from curate.pipeline.job import prepare
from curate.pipeline.retraining import Retraining
from curate.pipeline.select import run_select
from curate.pipeline.worth import Appraiser, Compared, _answer, one_standard_error
from curate.recipe import check_recipe

CPU = torch.device("cpu")


def recipe(
    folder: Path, wrong: float, *, trained: int = 12, seed: int = 0, **selection: object
) -> dict[str, object]:
    """Two classes that a line divides, 480 candidates, some labels wrong; the target is clean."""
    random = np.random.default_rng(seed)
    for part, count in (("train", 480), ("validation", 240), ("test", 400)):
        x = random.normal(size=(count, 6))
        label = (x[:, 0] + x[:, 1] + 0.3 * random.normal(size=count) > 0).astype(int)
        if part == "train":
            label ^= random.random(count) < wrong
        Dataset.from_dict({"x": x.tolist(), "label": label.tolist()}).to_parquet(
            str(folder / f"{part}.parquet")
        )
    return {
        "data": {
            "columns": {"features": ["x"], "label": "label"},
            **{part: str(folder / f"{part}.parquet") for part in ("train", "validation", "test")},
        },
        "model": {"kind": "mlp", "hidden": [32], "activation": "gelu"},
        "training": {
            "epochs": trained,
            "batch_size": 32,
            "optimizer": {"kind": "adamw", "lr": 1e-2},
        },
        "selection": selection,
    }


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("noisy")
    return run_select(check_recipe(recipe(folder, 0.3)), folder / "out"), folder / "out"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("clean")
    return run_select(check_recipe(recipe(folder, 0.0, seed=2)), folder / "out"), folder / "out"


def test_where_labels_are_wrong_choosing_pays_and_a_budget_is_found(
    noisy: tuple[dict, Path],
) -> None:
    summary, out = noisy
    worth = summary["worth"]
    assert worth["answer"] == "pays"
    assert 0.5 <= worth["share"] < 0.95
    assert summary["kept"] == round(worth["share"] * 480)
    assert worth["chosen"]["low"] > 0
    against = {"everything", "random", "target alone", "everything and target"}
    assert {way["name"] for way in worth["against"]} == against
    assert closing_lines(summary).startswith("choosing pays: loss is ")
    assert json.loads((out / "provenance.json").read_text())["worth"] == worth
    assert "Choosing pays" in (out / "report.html").read_text()


def test_other_labels_are_suggested_and_are_worth_what_they_gain(noisy: tuple[dict, Path]) -> None:
    summary, out = noisy
    labels = pl.read_parquet(out / "labels.parquet")
    assert summary["labels"]["asked"] == len(labels) == round(480 * (1 - summary["worth"]["share"]))
    suspected = labels.filter("is_label_issue")
    assert 40 < len(suspected) == summary["labels"]["suspected"]
    features = load_dataset("parquet", data_files=str(out.parent / "train.parquet"))["train"]
    x = np.array(features["x"])[suspected["row"].to_numpy()]
    right = (x[:, 0] + x[:, 1] > 0).astype(int).astype(str)
    assert (suspected["predicted_label"].to_numpy() == right).mean() > 0.9
    fixed = out.parent / "fixed.parquet"
    suspected.select("row", label=pl.col("predicted_label").cast(int)).write_parquet(fixed)
    made = check_recipe(recipe(out.parent, 0.3), [f"data.relabelled={fixed}"])
    again = run_select(made, out.parent / "corrected")
    assert again["relabelled"] == {"file": str(fixed)} | dict.fromkeys(
        ("rows", "changed"), len(suspected)
    )
    (read,) = (way for way in again["worth"]["against"] if way["name"] == AS_READ)
    (before,) = (way for way in summary["worth"]["against"] if way["name"] == "everything")
    assert read["judging"] == again["worth"]["judging"]
    assert read["loss"] == pytest.approx(before["loss"], abs=0.05)  # the same training, by others
    assert read["high"] < 0
    assert "On everything, they pay: loss is " in closing_lines(again)
    assert (
        fixed.name
        in json.loads((out.parent / "corrected/provenance.json").read_text())["relabelled"]["file"]
    )


def test_where_nothing_is_wrong_everything_is_kept_and_that_is_said(
    clean: tuple[dict, Path],
) -> None:
    summary, out = clean
    assert summary["worth"]["answer"] != "pays"
    assert summary["worth"]["share"] == 1
    assert summary["kept"] == 480
    assert pl.read_parquet(out / "scores.parquet")["kept"].all()
    assert "all rows are kept" in closing_lines(summary).splitlines()[0]


def test_a_budget_that_is_named_is_obeyed_and_judged_all_the_same(tmp_path: Path) -> None:
    made = recipe(tmp_path, 0.0, trained=6, keep={"fraction": 0.3})
    summary = run_select(check_recipe(made), tmp_path / "out")
    assert summary["kept"] == 144
    assert summary["worth"]["share"] is None
    assert summary["worth"]["answer"] == "does not pay"
    assert closing_lines(summary).startswith("choosing does not pay: loss is ")


def test_without_judging_that_is_said(tmp_path: Path) -> None:
    made = recipe(tmp_path, 0.0, trained=2, keep={"fraction": 0.5}, judge=False)
    summary = run_select(check_recipe(made), tmp_path / "out")
    assert "worth" not in summary
    assert closing_lines(summary).startswith("what choosing is worth was not measured")


@pytest.mark.parametrize(("lr", "learns"), [(1e-2, True), (1e-9, False)])
def test_a_model_that_learns_nothing_is_told(tmp_path: Path, lr: float, learns: bool) -> None:
    made = recipe(tmp_path, 0.3, trained=4)
    made["training"]["optimizer"]["lr"] = lr
    summary = run_select(check_recipe(made), str(tmp_path / "out"))
    untrained = summary["worth"]["untrained"]
    assert untrained["loss"] == pytest.approx(0.7, abs=0.2)
    assert untrained["loss"] + untrained["gain"] == pytest.approx(
        summary["worth"]["against"][0]["loss"], abs=0.05
    )
    assert ("training: on everything does not" not in closing_lines(summary)) is learns
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert ("on everything does not get the loss" not in page) is learns


def test_several_rounds_and_other_policies_are_judged_too(tmp_path: Path) -> None:
    for number, selection in enumerate(
        [{"rounds": 2, "epochs": 1}, {"policy": "loss"}, {"policy": "knn_shapley"}]
    ):
        made = recipe(tmp_path, 0.3, trained=4, **selection)
        summary = run_select(check_recipe(made), tmp_path / f"out{number}")
        assert summary["worth"]["answer"] in ("pays", "cannot tell"), selection


def test_gain_and_its_error_are_those_of_paired_losses(tmp_path: Path) -> None:
    job = prepare(check_recipe(recipe(tmp_path, 0.3)), CPU)
    retraining = Retraining(job, lambda: None)
    everything = retraining.plain().measured
    scores = np.tile(np.arange(480.0), (2, 1))
    judge = Appraiser(retraining, scores, lambda v, _: v >= 240, everything)
    found = judge.kept(0.5)
    (alone,) = retraining.on(job.data.examples, np.arange(240, 480), [1])
    differences = everything[0].losses - alone.losses
    if found.judging == len(differences):  # clear by one half
        assert found.gain == pytest.approx(differences.mean())
        error = differences.std(ddof=1) / len(differences) ** 0.5
        assert found.error == pytest.approx(error)
    else:
        assert found.judging == 240


def compared(gain: float, error: float, name: str = "kept", share: float = 0.5) -> Compared:
    return Compared(name, 10, share, 1.0, 1.0, {}, gain, error, 100)


@pytest.mark.parametrize(
    ("tried", "share"),
    [
        ([(0.9, 0.05, 0.1)], 1.0),  # less than its error
        ([(0.9, -0.2, 0.1), (0.8, -0.1, 0.1)], 1.0),
        ([(0.9, 0.3, 0.1), (0.8, 0.35, 0.1)], 0.9),  # nearly as good
        ([(0.9, 0.3, 0.1), (0.8, 0.5, 0.1)], 0.8),
        ([(0.9, 0.05, 0.1), (0.8, 0.14, 0.1)], 0.8),  # as good, but for its own error
    ],
)
def test_the_largest_share_that_is_nearly_as_good_and_better_than_all(
    tried: list[tuple[float, float, float]], share: float
) -> None:
    ways = [compared(gain, error, share=own) for own, gain, error in tried]
    assert one_standard_error(ways)[0] == share


@pytest.mark.parametrize(
    ("gain", "random", "kept", "answer"),
    [
        (0.3, 0.0, True, "pays"),
        (0.1, 0.0, True, "cannot tell"),  # 1.96 errors include 0
        (0.3, 0.4, True, "cannot tell"),  # any rows would do
        (-0.3, 0.0, True, "does not pay"),
        (-0.01, 0.0, False, "does not pay"),
        (0.05, 0.0, False, "cannot tell"),
    ],
)
def test_answers(gain: float, random: float, kept: bool, answer: str) -> None:
    against = [compared(0, 0, "everything"), compared(random, 0.1, "random")]
    assert _answer(compared(gain, 0.1), against, kept=kept) == answer


def test_words_for_scores_that_are_mostly_chance(clean: tuple[dict, Path]) -> None:
    repeats = {
        "correlation": 0.1,
        "low": 0.05,
        "high": 0.15,
        "reliability": 0.18,
        "foretold": 0.2,
        "target_rows": 100,
        "rows_needed": 1800,
    }
    assert "about 1,800 target rows would do, instead of 100" in repeats_line(repeats)
    assert "more target rows are needed" in repeats_line(repeats | {"low": -0.1})
    assert "best of" in worth_line(clean[0]["worth"])
