"""Records of numbers, held as columns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from curate.runtime.files import read_sealed, write_sealed
from curate.runtime.records import Records


@dataclass
class Line:
    place: int
    loss: float
    change: float | None = None
    effort: Literal["exact", "quick"] = "exact"


LINES = [Line(0, 1.5), Line(2**40, -0.0, 0.25, "quick"), Line(3, 1e-300, -1.0)]


def test_records_are_what_was_put_in() -> None:
    records = Records(Line, LINES)
    assert [*records] == LINES
    assert records == LINES
    assert (records[-1], records[1:], len(records)) == (LINES[-1], LINES[1:], 3)
    assert [type(records[1].place), type(records[0].change)] == [int, type(None)]
    assert records.columns()["change"] == [None, 0.25, -1.0]
    assert records.columns()["effort"] == ["exact", "quick", "exact"]
    assert np.array_equal(records.column("loss"), [1.5, 0.0, 1e-300])
    assert not Records(Line)


def test_saved_records_go_on(tmp_path: Path) -> None:
    write_sealed(tmp_path / "x.safetensors", Records(Line, LINES[:2]).saved())
    again = Records(Line)
    again.restore(read_sealed(tmp_path / "x.safetensors"))
    again.append(LINES[2])
    assert again == LINES
