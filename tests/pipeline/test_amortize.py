"""`score.sample`: a sample is scored, all are predicted, and all else goes by that."""

import hashlib
import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from datasets import Dataset, load_from_disk

import curate
from curate import Scorer
from curate.output.page import REPORTED
from curate.output.saved_run import read_run
from curate.pipeline.amortize import ALL
from curate.pipeline.forecast import plan_select
from curate.pipeline.select import run_select
from curate.pipeline.verify import RemovalPlan, run_verify
from curate.recipe import Recipe, load_recipe
from curate.runtime import progress, savepoints
from tests import words
from tests.job import RECIPE, rows

SAMPLE = ("score={sample: 110}", "selection.rounds=1")
COUNT = 240


def recipe(*overrides: str) -> Recipe:
    return load_recipe("recipe.yaml", [*SAMPLE, *overrides])


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """More rows than the sample: 144 of them candidates."""
    monkeypatch.chdir(tmp_path)
    rows(COUNT).to_parquet("rows.parquet")
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The recipe, and a run of it that was judged and evaluated."""
    folder = tmp_path_factory.mktemp("sampled")
    with chdir(folder):
        rows(COUNT).to_parquet("rows.parquet")
        Path("recipe.yaml").write_text(RECIPE)
        evaluation = "evaluation={seeds: [0], against: [everything, loss]}"
        summary = run_select(recipe("selection.judge=true", evaluation), folder / "out")
    return folder, summary


def test_every_candidate_has_a_score_and_those_of_the_sample_an_influence(
    once: tuple[Path, dict[str, Any]],
) -> None:
    folder, summary = once
    scores = pl.read_parquet(folder / "out/scores.parquet")
    assert len(scores) == summary["candidates"] == 144
    assert (
        scores["kept"].sum()
        == summary["kept"]
        == 72
        == len(load_from_disk(folder / "out")["train"])
    )
    of_sample = scores["seen"] > 0
    assert of_sample.sum() == summary["prediction"]["sample"] == 110
    for name in ("influence", "error"):
        assert (scores[name].is_not_null() == of_sample).all()
        assert scores[name].drop_nulls().is_finite().all()
    assert scores["score"].is_finite().all()
    width = summary["prediction"]["width"]
    assert np.allclose(scores["high"] - scores["score"], width)
    assert np.allclose(scores["score"] - scores["low"], width)
    assert (scores.sort("rank")["score"].diff().drop_nulls() <= 0).all()
    assert {*scores["reason"]} == {"top by score", "below the budget"}


def test_what_was_not_of_the_sample_counts_in_all_that_is_retrained(
    once: tuple[Path, dict[str, Any]],
) -> None:
    folder, summary = once
    sizes = {row["trained_on"]: row["rows"] for row in summary["evaluation"]}
    assert sizes == {"look_ahead": 72, "everything": 144, "loss": 72}
    assert "missing" not in summary
    assert all((folder / "out" / name).exists() for name in REPORTED)
    text = (folder / "out/README.md").read_text()
    assert "scores predicted from those of 110 rows" in text
    assert "on the sample of 110 rows" in text  # which is what judges whether choosing pays
    run = read_run(folder / "out")
    assert len(run.scores) == 144


def test_verifying_the_run_finds_the_influences_of_the_sample_again(
    once: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = once
    with chdir(folder):
        made = load_recipe("out/recipe.yaml")
        verified, summary = run_verify(
            made, tmp_path / "verified", RemovalPlan(examples=4), run=folder / "out"
        )
        assert summary["reproduced"]
        assert len(verified.table) == 4
        scores = pl.read_parquet("out/scores.parquet").drop_nulls("influence")
        assert {*verified.table["row"]} <= {*scores["row"]}
        other = load_recipe("out/recipe.yaml", ["score={sample: 120}"])
        _, summary = run_verify(other, tmp_path / "other", RemovalPlan(2), run=folder / "out")
        assert not summary["reproduced"]


def test_tuning_goes_by_the_sample(there: Path) -> None:
    grid = "tune={horizons: [1, 4], learning_rates: [1e-2], budget: 1.0, seeds: [0]}"
    tuned = curate.tune(recipe(grid), there / "tuned")
    assert tuned.pair.horizon in (1, 4)


def test_the_plan_counts_predicting_and_evaluation_on_all_rows(there: Path) -> None:
    evaluation = "evaluation={seeds: [0], against: [everything]}"
    plan = plan_select(recipe(evaluation), there / "out")
    assert (plan["candidates"], plan["scored"]) == (144, 110)
    assert plan["passes"]["predict"] == round(2 * -(-110 // 16) + 2 / 3 * 144 / 16, 1)
    assert plan["passes"]["retrain"] == 2 * 2 * -(-144 // 16)
    whole = plan_select(load_recipe("recipe.yaml", ["selection.rounds=1"]), there / "out")
    assert whole["passes"]["predict"] == 0
    assert (whole["candidates"], whole["scored"]) == (144, 144)


def test_a_sample_of_all_rows_chooses_as_without_it_and_learns_all_the_same(there: Path) -> None:
    plain = run_select(load_recipe("recipe.yaml", ["selection.rounds=1"]), there / "plain")
    sampled = run_select(recipe("score={sample: 5000}"), there / "sampled")
    one, other = (pl.read_parquet(there / n / "scores.parquet") for n in ("plain", "sampled"))
    assert one.equals(other)
    assert plain["kept"] == sampled["kept"]
    assert sampled["prediction"]["sample"] == 72  # of 144; the features are made with the others
    assert not (there / "plain/predictor").exists()
    assert np.isfinite(Scorer(there / "sampled")(rows(50)[:])["score"]).all()


BUDGETS = {
    "fraction": ("{fraction: 0.25}", 36),
    "count": ("{count: 100}", 100),
    "everything": ("{fraction: 1.0}", 144),
    "threshold": ("{threshold: 0.2}", None),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_the_budget_is_one_of_all_candidates(there: Path, name: str) -> None:
    keep, count = BUDGETS[name]
    summary = run_select(recipe(f"selection.keep={keep}"), there / "out")
    scores = pl.read_parquet("out/scores.parquet")
    expected = scores["score"] >= 0.2 if count is None else scores["rank"] <= count
    assert scores["kept"].equals(expected.rename("kept"))
    assert summary["kept"] == scores["kept"].sum()
    (cut,) = json.loads(Path("out/predictor/predictor.json").read_text())["cuts"].values()
    if name == "everything":
        assert cut == ALL
    else:
        kept, dropped = (scores.filter(pl.col("kept") == k)["score"] for k in (True, False))
        assert dropped.max() < cut <= kept.min()


def test_quotas_are_of_the_groups_of_all_candidates(there: Path) -> None:
    run_select(recipe("selection.group_by=group"), there / "out")
    scores = pl.read_parquet("out/scores.parquet").sort("row")
    groups = pl.DataFrame({"kept": scores["kept"], "group": scores["row"] % 3}).group_by("group")
    for _, part in groups:
        assert abs(part["kept"].sum() - len(part) / 2) <= 1
    cuts = json.loads(Path("out/predictor/predictor.json").read_text())["cuts"]
    assert {*cuts} == {"0", "1", "2"}


def test_where_nobody_says_how_much_to_keep_the_sample_finds_out(there: Path) -> None:
    summary = run_select(recipe("selection={keep: auto, judge: true}"), there / "out")
    share = summary["worth"]["share"]
    assert summary["kept"] == round(share * 144)
    everything = [w["rows"] for w in summary["worth"]["against"] if w["name"] == "everything"]
    assert everything == [110]


def test_a_budget_in_tokens_is_one_of_all_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path)
    known = " ".join(words.passages(60)).split()
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(known, random.integers(3, 12))) for _ in range(260)]
    Dataset.from_dict({"text": texts}).to_parquet("texts.parquet")
    for name, budget in (("share", 0.5), ("number", 500)):
        made = load_recipe("text.yaml", [*SAMPLE, f"selection.keep={{tokens: {budget}}}"])
        tokens = run_select(made, tmp_path / name)["tokens"]
        if name == "share":
            assert abs(tokens["kept"] / tokens["candidates"] - 0.5) < 0.02
        else:
            assert 480 < tokens["kept"] <= 500


@pytest.mark.parametrize("ticks", [9, 20, 34, 50, 62])
def test_stopped_anywhere_it_goes_on_and_comes_to_the_same_bits(
    once: tuple[Path, dict[str, Any]], there: Path, ticks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = once
    made = load_recipe(folder / "out/recipe.yaml")
    monkeypatch.setattr(savepoints, "SHARE", float("inf"))
    left = iter(range(ticks))

    class Counted(progress.Pace):
        def tick(self, count: int) -> float | None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return super().tick(count)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "Pace", Counted)
        with pytest.raises(KeyboardInterrupt):
            run_select(made, there / "out")
    run_select(made, there / "out", resume=True)
    assert outcome(there / "out") == outcome(folder / "out")


def outcome(out: Path) -> dict[str, str]:
    """Digests of what a run chose and learned."""
    files = [*out.glob("*.parquet"), *out.glob("train/*.arrow"), *out.glob("predictor/*")]
    return {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
