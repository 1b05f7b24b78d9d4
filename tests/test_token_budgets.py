"""Budgets in tokens, and scores per token, on a small language model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from datasets import load_from_disk

from curate.pipeline.job import prepare
from curate.pipeline.score import selector_for
from curate.recipe import check_recipe
from curate.recipe.load import parse
from curate.selection.ledger import Scores
from curate.selection.ranking import rank_correlation
from tests import words
from tests.job import curate, sets, verify


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    words.write(tmp_path)
    return tmp_path


def select(*overrides: str) -> pl.DataFrame:
    assert curate("text.yaml", "--out", "out", "--overwrite", *sets(*overrides)) == 0
    return pl.read_parquet("out/scores.parquet").sort("rank")


@pytest.mark.parametrize("columns", ["{text: text}", "{prompt: prompt, completion: completion}"])
def test_tokens_are_the_terms_of_the_loss(there: Path, columns: str) -> None:
    recipe = check_recipe(parse(words.RECIPE), [f"data.columns={columns}", "data.max_length=64"])
    job = prepare(recipe, torch.device("cpu"))
    everything = torch.arange(len(job.data.examples))
    batch = job.data.examples.batch(everything, job.device)
    assert job.data.tokens is not None
    assert job.data.tokens.tolist() == job.objective.sizes(batch).tolist()


RUNS = [
    ["selection.keep={tokens: 300}"],
    ["selection.keep={tokens: 3e2}", "selection.rounds=1", "selection.per=example"],
    ["selection.keep={tokens: 300}", "selection.horizon=1"],
    ["selection.keep={tokens: 300}", "selection.policy=random"],
    ["selection.keep={tokens: 0.4}", "selection.policy=loss"],
]


@pytest.mark.parametrize("overrides", RUNS, ids=" ".join)
def test_the_head_of_the_ranking_is_kept_as_far_as_the_tokens_go(
    there: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    table = select(*overrides)
    sums = np.concatenate([[0], table["tokens"].cum_sum().to_numpy()])
    size = int(table["kept"].sum())
    assert table["kept"][:size].all()
    total = sums[-1]
    if "300" in overrides[0] or "3e2" in overrides[0]:
        assert sums[size] <= 300 < sums[size + 1]
    else:
        assert abs(sums[size] - 0.4 * total) == np.abs(sums - 0.4 * total).min()
    assert len(load_from_disk("out")["train"]) == size
    tokens = json.loads(Path("out/provenance.json").read_text())["tokens"]
    assert tokens == {"candidates": total, "kept": sums[size]}
    assert f"tokens: {sums[size]} of {total} kept" in capsys.readouterr().out
    assert f"{sums[size]} of {total} kept" in Path("out/README.md").read_text()
    if overrides in (RUNS[0], RUNS[-1]):
        assert curate("out/recipe.yaml", "--out", "again") == 0
        assert table.equals(pl.read_parquet("again/scores.parquet").sort("rank"))


def test_groups_get_tokens_in_proportion_to_theirs(there: Path) -> None:
    groups = ["selection.keep={tokens: 0.5}", "selection.group_by=label"]
    table = select(*groups, "selection.policy=loss")
    whole = load_from_disk("out")["train"]
    assert set(whole["label"]) == {"short", "long"}
    labels = words.texts()["label"]
    table = table.with_columns(label=pl.Series([labels[row] for row in table["row"]]))
    for _, own in table.group_by("label"):
        quota = own["tokens"].sum() / 2
        assert abs(own.filter("kept")["tokens"].sum() - quota) <= own["tokens"].max()


def test_a_random_half_of_the_tokens_to_compare_with(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not of the rows: short ones kept would be compared with more to learn from."""
    table = select(
        "selection.keep={tokens: 200}",
        "evaluation={seeds: [0], against: [random, loss, everything]}",
    )
    found = json.loads(Path("out/provenance.json").read_text())["evaluation"]
    rows = {row["trained_on"]: row["tokens"] for row in found}
    kept = table.filter("kept")["tokens"].sum()
    assert rows["look_ahead"] == kept
    assert rows["everything"] == table["tokens"].sum()
    assert abs(rows["random"] - kept) <= table["tokens"].max() / 2
    assert rows["loss"] <= 200
    assert "retrained on  rows  tokens" in capsys.readouterr().out


def test_what_keeps_nothing_leaves_the_scores(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = select("selection.policy=random")
    shortest, first = table["tokens"].min(), table["tokens"][0]
    assert isinstance(shortest, int)
    assert shortest < first
    capsys.readouterr()
    settings = sets("selection.policy=random", f"selection.keep={{tokens: {shortest}}}")
    assert curate("text.yaml", "--out", "none", *settings) == 2
    error = capsys.readouterr().err
    assert (
        f"keep.tokens: {shortest} keeps no row; the one that scores highest has {first}." in error
    )
    assert error.count("\n") == 1
    assert len(pl.read_parquet("none/scores.parquet")) == len(table)


def test_a_plan_counts_the_share_that_is_kept(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commits = []
    for keep in ("{tokens: 0.25}", "{fraction: 0.25}"):
        assert curate("text.yaml", "--plan", "--json", "--set", f"selection.keep={keep}") == 0
        plan: dict[str, Any] = json.loads(capsys.readouterr().out)
        commits.append(plan["passes"]["commit"])
    assert commits[0] == commits[1] > 0


def test_a_selection_by_tokens_is_verified(there: Path) -> None:
    select("selection.keep={tokens: 0.4}")
    assert verify("out", "--examples", "4") == 0
    assert json.loads(Path("out/verify.json").read_text())["reproduced"]


def test_per_token_is_the_default_for_tokens_and_for_nothing_else() -> None:
    base = parse(words.RECIPE)

    def per(*overrides: str) -> str:
        return check_recipe(base, overrides).selection.per

    assert per() == per("selection.keep={count: 3}") == "example"
    assert per("selection.keep={tokens: 300}") == per("selection.keep={tokens: 0.3}") == "token"
    assert per("selection.keep={tokens: 300}", "selection.per=example") == "example"
    assert per("selection.per=token") == "token"


def test_per_token_divides_influence_and_loss_by_tokens_and_leaves_the_column(there: Path) -> None:
    """One step of everything: scores are the influences, over tokens, standardized."""
    once = ["selection.rounds=1", "training.epochs=1", "training.batch_size=36"]
    plain, per = (
        select(*once, f"selection.per={unit}").sort("row") for unit in ("example", "token")
    )
    assert plain["influence"].equals(per["influence"])
    found, tokens = policy_scores(*once, "selection.per=token")
    assert found.influence is not None
    density = found.influence / tokens
    expected = (density - density.mean()) / density.std()
    np.testing.assert_allclose(found.score, expected, rtol=1e-9, atol=1e-9)


def policy_scores(*overrides: str) -> tuple[Scores, Any]:
    """What the policy itself makes of a run, before losses have their say; and tokens."""
    raw = parse(Path("text.yaml").read_text())
    job = prepare(check_recipe(raw, overrides), torch.device("cpu"))
    selector, state, steps = selector_for(job, job.recipe.selection.policy)
    return selector.run(state, steps), job.data.tokens


@pytest.mark.parametrize("policy", ["look_ahead", "loss"])
def test_scores_per_token_do_not_go_with_length(there: Path, policy: str) -> None:
    """120 passages of 3 to 30 words. Removal that renormalises moves the mean by how long a text
    is, up or down: long ones fill both ends of the ranking. Losses that are sums go up with length.
    """
    words.texts(120).to_parquet("texts.parquet")
    found = {}
    for unit in ("example", "token"):
        settings = [
            "data.max_length=64",
            "selection.probing=0",
            "selection.rounds=1",
            f"selection.per={unit}",
            f"selection.policy={policy}",
            "training.epochs=1",
        ]
        scores, tokens = policy_scores(*settings)
        size = np.abs(scores.score) if policy == "look_ahead" else -scores.score
        found[unit] = rank_correlation(size, tokens.astype(float))
    assert found["example"] > 0.4, found
    assert abs(found["token"]) < 0.3, found
