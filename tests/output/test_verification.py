"""What `curate verify` says and draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from curate.cli import summary as lines_of
from curate.output import figures
from curate.pipeline.agreement import agree
from curate.pipeline.verify import Verified
from curate.selection.ledger import Scores


def verified(*, mistaken: bool, error: float | None = 0.1) -> Verified:
    random = np.random.default_rng(0)
    predicted = random.normal(size=30)
    actual, wrong = predicted + 0.01 * random.normal(size=30), random.normal(size=30)
    table = pl.DataFrame(
        {
            "row": np.arange(30),
            "influence": predicted,
            "actual": actual,
            "error": np.full(30, np.nan if error is None else error),
        }
        | ({"influence_sgd": wrong} if mistaken else {})
    )
    return Verified(
        table, agree(predicted, actual), agree(wrong, actual) if mistaken else None, error,
        Scores(predicted, np.ones(30), predicted, predicted[None]),
    )  # fmt: skip


def describe_verification(found: Verified) -> str:
    return lines_of.describe_verification(
        {
            "examples": len(found.table),
            "agreement": found.agreement.as_dict(),
            "mistaken": None if found.mistaken is None else found.mistaken.as_dict(),
            "verdict": found.agreement.verdict(),
            "expected_error": found.expected,
            "reproduced": None,
            "out": "out",
        }
    )


def plot_verification(found: Verified, path: Path) -> None:
    mistaken = None if found.mistaken is None else found.mistaken.spearman.value
    figures.plot_verification(found.table, found.agreement.spearman.value, mistaken, path)


def test_the_lines_are_the_numbers() -> None:
    found = verified(mistaken=False)
    text = describe_verification(found)
    header, own, _, error, verdict, _ = text.splitlines()
    assert len(header) == len(own)
    assert own.startswith("this run")
    assert str(found.agreement.spearman) in own
    assert str(found.agreement.pearson) in own
    assert f"{found.agreement.slope:.2f}" in own
    assert f"{found.agreement.relative_error:.1%}" in own
    assert "mean over 30 rows" in error
    assert "expected by the run: 0.1;" in error
    assert verdict == f"verdict: {found.agreement.verdict()}"
    assert "SGD" not in text


def test_the_mistake_has_a_line_and_a_price() -> None:
    found = verified(mistaken=True)
    assert found.mistaken is not None
    text = describe_verification(found)
    price = found.agreement.spearman.value - found.mistaken.spearman.value
    assert f"taking the optimizer for SGD costs {price:.3f} of Spearman's correlation" in text
    assert str(found.mistaken.spearman) in text.splitlines()[2]


def test_an_error_that_was_not_asked_for_is_not_made_up() -> None:
    text = describe_verification(verified(mistaken=False, error=None))
    assert "expected by the run: not asked for (selection.probing is 0)" in text


@pytest.mark.parametrize("mistaken", [False, True])
@pytest.mark.parametrize("error", [None, 0.1])
def test_the_picture_is_one_panel_or_two(
    tmp_path: Path, error: float | None, mistaken: bool
) -> None:
    path = tmp_path / "verify.png"
    plot_verification(verified(mistaken=mistaken, error=error), path)
    with Image.open(path) as image:
        assert image.size == ((1248 if mistaken else 676), 624)
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_bars_are_drawn_where_an_error_is_known(tmp_path: Path) -> None:
    for name, error in (("with.png", 0.5), ("without.png", None)):
        plot_verification(verified(mistaken=False, error=error), tmp_path / name)
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_changes_that_are_all_the_same_can_be_said_and_drawn(tmp_path: Path) -> None:
    """As of a target that nothing reaches."""
    found = verified(mistaken=False)
    zeros = np.zeros(30)
    table = found.table.with_columns(actual=zeros, influence=zeros, error=zeros)
    nothing = replace(found, table=table, agreement=agree(zeros, zeros))
    assert "verdict: no verdict" in describe_verification(nothing)
    plot_verification(nothing, tmp_path / "verify.png")
