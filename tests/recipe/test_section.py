"""The base of sections, and the kinds of values that they share."""

from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from curate.recipe import Split
from curate.recipe.optimizers import AdamSection, AdamWSection, Optimizer
from curate.recipe.section import NO_REPEATS, Count, Fraction, Section, in_words, one_of, sections


def test_heirs_come_after_what_they_inherit_from() -> None:
    optimizers = sections(Optimizer)
    assert optimizers[0] is Optimizer
    assert optimizers.index(AdamSection) < optimizers.index(AdamWSection)
    assert sections(Section)[0] is Section
    assert {*optimizers, Split} < {*sections(Section)}


@pytest.mark.parametrize(
    ("kind", "good", "bad", "message"),
    [
        (Annotated[str, one_of({"hall": 1, "attic": 2})], "attic", "a", "be 'hall' or 'attic'"),
        (Annotated[Count, in_words("must be doors, not {got}")], 3, 0, "must be doors, not 0"),
        (Count, 10**12, 0, "greater than or equal to 1"),
        (Fraction, 0.5, 1, "less than 1"),
        (
            Annotated[list[int], NO_REPEATS],
            [1, 2],
            [1, 2, 1],
            r"not repeat itself but got \[1, 2, 1",
        ),
        (Annotated[list[int] | None, NO_REPEATS], None, "1", "valid list"),
    ],
)
def test_kinds_of_values_take_nothing_else(kind: Any, good: Any, bad: Any, message: str) -> None:
    adapter = TypeAdapter(kind)
    assert adapter.validate_python(good) == good
    with pytest.raises(ValidationError, match=message):
        adapter.validate_python(bad)


@pytest.mark.parametrize(
    "raw", [{"fraction": "0.5"}, {"fraction": float("nan")}, {"fraction": 0.5, "more": 1}, {}]
)
def test_a_section_takes_no_other_keys_types_or_nan(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Split.model_validate(raw)


def test_a_section_is_never_changed() -> None:
    split = Split(fraction=0.5)
    with pytest.raises(ValidationError, match="frozen"):
        split.fraction = 0.2
