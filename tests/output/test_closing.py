"""The closing lines of a selection, for a terminal and for a notebook."""

import re
from html.parser import HTMLParser
from typing import Any

from curate.output.closing import closing_html, closing_lines
from tests.output.made import SELECTED, WORTH, way


def test_a_bare_selection() -> None:
    assert closing_lines(SELECTED).splitlines() == [
        "what choosing is worth was not measured (selection.judge, data.validation)",
        "",
        "rows: 36 of 72 kept (50%)",
        "run: look_ahead (10 steps, cpu)",
        "time: read 0.1 s, write 1.3 s",
        "wrote out; to look at: out/report.html",
    ]


def test_a_selection_with_all_that_can_be_known() -> None:
    metric = {"mean": 0.5, "std": 0.0, "values": [0.5]}
    summary = SELECTED | {
        "worth": WORTH,
        "cost": 7.25,
        "evaluation": [{"trained_on": "look_ahead", "rows": 36, "loss": metric}],
        "noise": {"planted": 14, "kept": 1, "auroc": 0.5},
        "error": {"probes": 9, "signal": 1.0, "error": 0.1, "jump": 0.1, "propagation": 0.0},
        "repeats": {"correlation": 0.5, "low": 0.4, "high": 0.6, "foretold": 0.5}
        | {"reliability": 0.9, "target_rows": 60, "rows_needed": None},
    }
    lines = closing_lines(summary).splitlines()
    assert lines[0].startswith("choosing pays: loss is 0.25 lower than on everything")
    assert lines[0].endswith("; all this took 7.2 plain trainings")
    assert [line.split()[0] for line in lines[2:6]] == ["trained", "kept", "everything", "random"]
    assert lines[6].startswith("each trained from scratch, 10 steps at most")
    assert lines[8:10] == ["retrained on  rows  test loss", "look_ahead      36      0.500"]
    assert "label noise: 1 of 14 wrong labels kept; AUROC of the score 0.500" in lines
    assert lines[-3].startswith("influences: to be trusted: size and order are right")
    assert lines[-2].startswith(
        "influences on one half of the target and on the other correlate 0.50"
    )


class Cells(HTMLParser):
    """What the cells of a page's tables say, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.open, self.cells = list[str](), list[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, _: Any) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_a_notebook_says_the_same() -> None:
    worth = WORTH | {"against": [way("everything", 0.0), way("<b>", 0.0)]}
    summary = SELECTED | {
        "worth": worth,
        "cost": 2.0,
        "noise": {"planted": 4, "kept": 1, "auroc": 1},
    }
    page = Cells(closing_html(summary))
    assert page.open == []
    assert "<b>" in page.cells  # escaped, so that it is text
    lines = closing_lines(summary).splitlines()
    assert lines[0] in closing_html(summary)
    assert re.split(r"  +", lines[2])[:3] == page.cells[:3] == ["trained on", "rows", "loss"]
    assert page.tags.count("tr") == 4
    assert page.tags.count("li") == 4
    assert "table" not in Cells(closing_html(SELECTED)).tags
