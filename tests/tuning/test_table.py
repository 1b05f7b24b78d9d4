"""The table of a tuning: a line per pilot and per pair, with what became of it."""

from dataclasses import asdict

import pytest

from curate.recipe import Tune
from curate.tuning.grid import Pair, Plan
from curate.tuning.pilot import View
from curate.tuning.study import Entry, Unit
from curate.tuning.table import SCHEMA, describe_pilot, describe_run, table_of

HORIZONS = (1, 2, 4, 8, 16)
PLAN = Plan(HORIZONS, (1e-2,), 16, 1.0, False, 4, Tune(), 16, 0, 1)


def test_every_pair_has_what_became_of_it_and_what_its_pilot_showed() -> None:
    views = [asdict(View(k, 3, 2.0, 0.5 * k, 0.1, 0.2)) for k in HORIZONS]
    entries = {
        Unit(1e-2): Entry(7, "finished", 0.9, {"views": views, "passes": 20.0}),
        Unit(1e-2, 1): Entry(0, "finished", 0.4, {"values": [0.3, 0.5], "seconds": 2.0}),
        Unit(1e-2, 2): Entry(1, "finished", 0.6, {"values": [0.6, 0.6]}),
        Unit(1e-2, 4): Entry(2, "finished", None, {"reason": "diverged"}),
        Unit(1e-2, 8): Entry(3, "finished", None, {"dropped": True, "reason": "no trust"}),
    }
    table = table_of(entries, PLAN, Pair(1, 1e-2))
    assert dict(table.schema) == SCHEMA
    outcomes = ["pilot", "best", "beaten", "failed", "dropped", "untried"]
    assert table["outcome"].to_list() == outcomes
    assert table["horizon"].to_list() == [None, *HORIZONS]
    assert table["value"].to_list() == [0.9, 0.4, 0.6, None, None, None]
    assert table["trial"].to_list() == [7, 0, 1, 2, 3, None]
    assert table["reason"].to_list() == [None, None, None, "diverged", "no trust", None]
    assert table["error"].to_list() == [None, *(0.5 * k for k in HORIZONS)]
    assert table["values"].to_list()[1] == [0.3, 0.5]


@pytest.mark.parametrize(("value", "shown"), [(0.12345, "loss 0.1235"), (None, "no value")])
def test_lines_say_the_metric_or_that_there_is_none(value: float | None, shown: str) -> None:
    assert describe_run(Pair(4, 1e-2), value, PLAN).endswith(f": {shown}")
    line = describe_pilot(1e-2, value, PLAN, [1, 4])
    assert line == f"pilot lr 0.01: {shown} on everything; horizons to be trusted: 1, 4"
    assert describe_pilot(1e-2, value, PLAN, []).endswith("trusted: none")
