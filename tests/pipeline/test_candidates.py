"""Candidates, target and test set of a recipe: who is in which part."""

from pathlib import Path

import pytest
import torch

from curate.errors import DataError
from curate.pipeline.candidates import Candidates, divide, read_candidates
from curate.recipe import check_recipe
from curate.recipe.load import parse
from tests.job import RECIPE, rows


def read(*overrides: str) -> Candidates:
    return read_candidates(check_recipe(parse(RECIPE), overrides))


def test_every_row_is_in_one_part_and_the_same_one_again(here: Path) -> None:
    found = read()
    assert found.test is not None
    parts = [found.examples, found.validation["validation"], found.test]
    assert [len(part) for part in parts] == [72, 24, 24]
    assert sorted(torch.cat([part.rows for part in parts]).tolist()) == [*range(120)]
    assert torch.equal(read().examples.rows, found.examples.rows)
    assert not torch.equal(read("data.seed=1").examples.rows, found.examples.rows)


def test_all_parts_are_standardized_by_the_candidates(here: Path) -> None:
    plain, scaled = read(), read("data.standardize=true")
    features = plain.examples.all_features()
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    for part, other in (
        (plain.examples, scaled.examples),
        (plain.validation["validation"], scaled.validation["validation"]),
        (plain.test, scaled.test),
    ):
        expected = (part.all_features() - mean) / std
        torch.testing.assert_close(other.all_features(), expected, rtol=1e-3, atol=1e-3)


def test_a_target_by_name_is_a_source_of_its_own(here: Path) -> None:
    rows(30).to_parquet("near.parquet")
    found = read("data.validation={near: near.parquet, all: rows.parquet}")
    assert {name: len(part) for name, part in found.validation.items()} == {"near": 30, "all": 120}
    assert found.target_weights == {"near": 1.0, "all": 1.0}
    assert len(found.examples) == 96
    weighted = read(
        "data.validation={near: near.parquet, all: rows.parquet}",
        "selection.weights={near: 1, all: 4}",
    )
    assert weighted.target_weights == {"near": 0.25, "all": 1.0}


def test_targets_are_divided_into_rows_that_choose_and_rows_that_judge(here: Path) -> None:
    validation = read().validation
    rest, taken = divide(validation, 0.25, seed=3)
    assert (len(rest["validation"]), len(taken["validation"])) == (18, 6)
    both = torch.cat([rest["validation"].rows, taken["validation"].rows])
    assert torch.equal(both.sort().values, validation["validation"].rows.sort().values)
    again = divide(validation, 0.25, seed=3)[1]["validation"].rows
    assert torch.equal(again, taken["validation"].rows)
    with pytest.raises(DataError, match=r"validation has 24 rows, too few to divide by 0\.01"):
        divide(validation, 0.01, seed=3)


def test_columns_that_nobody_uses_go_out_as_they_came_in(here: Path) -> None:
    cells = [
        f"{k / 10:.2f},{'NA' if k % 2 else 'None'},{k:03},,2024-01-0{k % 9 + 1}" for k in range(40)
    ]
    Path("rows.csv").write_text("x,label,code,empty,day\n" + "\n".join(cells) + "\n")
    found = read(
        "data.label_noise=null",
        "data.test=null",
        "data={train: rows.csv, columns: {features: [x]}, validation: {fraction: 0.25}}",
    )
    rows = [
        f"{row['x']:.2f},{row['label']},{row['code']},{row['empty']},{row['day']}"
        for row in found.table
    ]
    assert rows == [cells[k] for k in found.examples.rows.tolist()]
    assert found.table.features["x"].dtype == "float64"
    assert found.outputs == 2
