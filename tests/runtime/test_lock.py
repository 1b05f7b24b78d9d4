"""One process at a time."""

from pathlib import Path

import pytest

from curate.errors import OutputError, UnfinishedError
from curate.runtime.lock import alone


def test_the_second_is_told_what_to_do_and_the_lock_goes_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "deep/lock"
    for _ in range(2):
        with alone(path, "wait."):
            with pytest.raises(UnfinishedError, match=r"^wait\.$"), alone(path, "wait."):
                pytest.fail("it is taken")
            assert path.exists()
        assert not path.exists()


def test_it_is_no_link_and_its_folder_no_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to("mine")
    for path in (tmp_path / "lock", tmp_path / "mine/lock"):
        with pytest.raises(OutputError, match="cannot be written"), alone(path, "wait."):
            pytest.fail("it cannot be")
    assert (tmp_path / "mine").read_text() == "mine"
