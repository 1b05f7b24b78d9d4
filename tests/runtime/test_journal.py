"""A journal gives back what was entered, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from curate.errors import OutputError, RunError
from curate.runtime.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "deep/journal.jsonl"
    journal = Journal(path, "a run")
    assert journal.enter("everything", 0, value={"loss": 0.1}) == {"loss": 0.1}
    journal.enter("everything", 1, value=[0.2, None])
    journal.enter(7, value=0.3)
    return path


def test_what_was_entered_is_found_by_the_next(path: Path) -> None:
    for _ in range(2):
        journal = Journal(path, "a run")
        assert len(journal) == 3
        assert journal.find("everything", 0) == {"loss": 0.1}
        assert journal.find("everything", 1) == [0.2, None]
        assert journal.find(7) == 0.3
        assert journal.find("7") is None


def test_what_another_undertaking_entered_is_dropped(path: Path) -> None:
    assert len(Journal(path, "another")) == 0
    assert len(Journal(path, "a run")) == 0


def test_who_only_reads_writes_nothing(path: Path) -> None:
    before = path.read_bytes()
    reader = Journal(path, "a run", read_only=True)
    assert reader.find(7) == 0.3
    assert reader.enter(8, value=0.4) == 0.4
    Journal(path, "another", read_only=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        pytest.param(lambda lines: [*lines[:-1], lines[-1][:-5]], 2, id="cut short"),
        pytest.param(
            lambda lines: [lines[0], lines[1].replace("0.1", "0.9"), *lines[2:]], 2, id="bit"
        ),
        pytest.param(lambda lines: lines[1:], 0, id="its name gone"),
        pytest.param(lambda lines: [], 0, id="empty"),
        pytest.param(
            lambda lines: [lines[0], "\x00\xff", "{}", "[1]", *lines[1:]], 3, id="rubbish"
        ),
    ],
)
def test_damaged_lines_are_left_out_and_written_no_more(
    path: Path, damage: Callable[[list[str]], list[str]], kept: int
) -> None:
    path.write_text("\n".join(damage(path.read_text().splitlines())))
    journal = Journal(path, "a run")
    assert len(journal) == kept
    assert len(path.read_text().splitlines()) == 1 + kept
    journal.enter("again", value=1)
    assert Journal(path, "a run").find("again") == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file: cannot be written: File exists\."):
        Journal(tmp_path / "file/journal", "a run")
    journal = Journal(path, "a run")
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match=r"journal\.jsonl: cannot be written: Is a directory\."):
        journal.enter("more", value=1)
