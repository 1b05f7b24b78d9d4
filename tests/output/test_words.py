"""Texts, numbers and tables as they are read."""

from typing import Any

from curate.output.words import (
    Scale,
    cells,
    columns,
    evaluation_cells,
    fit,
    horizon_name,
    mean_and_spread,
    percent,
    plain,
    truncate,
    visible,
    worth_cells,
    wrap,
)


def test_cells_of_wide_and_combining_characters() -> None:
    assert [cells(t) for t in ("ab", "日本", "e\u0301", "\u200d")] == [2, 4, 1, 0]
    assert fit("日本語", 5) == "日本…"
    assert fit("日本語", 4) == "日… "
    assert fit("ab", 4) == "ab  "
    assert wrap("aa bb cc", 5) == ["aa bb", "cc"]
    assert wrap("日本語日本語", 5) == ["日本", "語日", "本語"]
    assert wrap("a\n\nb", 5) == ["a", "", "b"]
    assert wrap("", 5) == [""]


def test_texts_and_numbers_as_they_are_read() -> None:
    assert visible("a\tb\nc\x1b\x85\u202e\ufeff") == "a\tb\nc\\x1b\\x85\\u202e\\ufeff"
    assert truncate("abcdef", 3) == "abc … (3 more characters)"
    numbers = [plain(v) for v in (-0.5, 1234.5, 2e-5, -3e9, float("nan"))]
    assert numbers == ["−0.5", "1,234", "2 × 10⁻⁵", "−3 × 10⁹", "–"]
    scale = Scale([2e-4, -3e-4, 0.0])
    assert scale.name == "10⁻⁴"
    assert [scale.write(v) for v in (2e-4, -3.456e-4, None)] == ["+2.00", "−3.46", "–"]
    assert scale.write(2e-4, named=True) == "+2.00 × 10⁻⁴"
    assert Scale([]).write(1.0, sign="") == "1.000"


def test_a_narrow_terminal_ends() -> None:
    """Where not even one character fits, there is one to a line."""
    assert wrap("日本 ab", 1) == ["日", "本", "a", "b"]
    assert wrap("abc", 0) == ["a", "b", "c"]


def test_words_for_numbers() -> None:
    assert mean_and_spread([0.5]) == "0.500"
    assert mean_and_spread([1.0, 2.0, 3.0]) == "2.000 ± 1.000"
    assert [percent(share) for share in (0.12345, 1.0, 11.0)] == ["12.3%", "100%", "over 1000%"]
    assert [horizon_name(k, 16) for k in (4, 16)] == ["4", "full (16)"]


def test_columns_line_up_whatever_is_in_them() -> None:
    lines = columns([["", "a"], ["日本", "12"], ["x", "–"]])
    assert lines == ["       a", "日本  12", "x      –"]


def way(name: str, gain: float, share: float | None = None) -> dict[str, Any]:
    ends = {"low": gain - 0.1, "high": gain + 0.1, "loss": 1 - gain, "last": 1.25}
    ends |= {"judging": 30, "metrics": {"f1": 0.5}}
    return {"name": name, "rows": 1200, "share": share, "gain": gain} | ends


def test_ways_to_train_are_sorted_by_loss_and_budgets_have_their_share() -> None:
    tried = [way("kept", 0.25, 0.7), way("kept", 0.5, 0.4)]
    against = [way("everything", 0.0), way("random", -0.5)]
    against[1]["judging"] = 60
    worth = {"chosen": tried[0], "tried": tried, "against": against, "judging": 30}
    head, *rows = worth_cells(worth)
    assert head == ["trained on", "rows", "loss", "f1", "gain", "interval", "without stopping"]
    assert [row[0] for row in rows] == [
        *("kept, 40%", "kept, 70%", "everything"),
        "random, by 60 rows",
    ]
    assert rows[0][1:] == ["1,200", "0.500", "0.500", "+0.500", "+0.400 to +0.600", "1.250"]
    assert rows[2][4:6] == ["", ""]  # against itself


def test_what_was_retrained_is_sorted_by_loss() -> None:
    def row(name: str, *losses: float) -> dict[str, Any]:
        loss = {"mean": sum(losses) / len(losses), "values": list(losses)}
        return {"trained_on": name, "rows": 3, "tokens": 1234, "noise_left": 0.25, "loss": loss}

    assert evaluation_cells([row("a", 2.0, 4.0), row("b", 1.0, 1.0)]) == [
        ["retrained on", "rows", "tokens", "wrong labels", "test loss"],
        ["b", "3", "1,234", "25.0%", "1.000 ± 0.000"],
        ["a", "3", "1,234", "25.0%", "3.000 ± 1.414"],
    ]
    bare = row("a", 2.0) | {"tokens": None, "noise_left": None, "top_1": {"values": [0.5]}}
    assert evaluation_cells([bare])[0] == ["retrained on", "rows", "test loss", "test top 1"]
