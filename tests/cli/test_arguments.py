"""What a shell completes, and what is said to be installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.shell_completion import ShellComplete

from curate.cli.main import cli, run


def completed(*typed: str) -> list[tuple[str, str]]:
    """(value, kind) of what completes the last of the words typed."""
    shell = ShellComplete(cli, {}, "curate", "_CURATE_COMPLETE")
    *words, incomplete = typed
    return [(item.value, item.type) for item in shell.get_completions(words, incomplete)]


def test_a_shell_completes_commands_and_built_in_recipes(here: Path) -> None:
    assert ("select", "plain") in completed("s")
    assert ("--overwrite", "plain") in completed("select", "--ov")
    assert completed("select", "di") == completed("tune", "di") == [("digits", "plain")]
    assert completed("verify", "gpt") == [("gpt2_wikitext", "plain")]


def test_a_shell_completes_recipes_and_paths(here: Path) -> None:
    Path("digits_mine.yaml").touch()
    assert completed("select", "di") == [("digits_mine.yaml", "plain"), ("digits", "plain")]
    assert completed("select", "some/pl") == [("some/pl", "file")]  # the shell's own


def test_the_line_of_the_guide_asks_curate_itself() -> None:
    typed = {
        "_CURATE_COMPLETE": "bash_complete",
        "COMP_WORDS": "curate select di",
        "COMP_CWORD": "2",
    }
    line = "import sys; sys.argv[0] = 'curate'; from curate.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", line],
        env={**os.environ, **typed, "_CURATE_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "plain,digits\n"


def test_versions_are_told_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["--version"]) == 0
    release = torch.__version__.partition("+")[0]  # of a wheel from elsewhere
    first, second, *more = capsys.readouterr().out.splitlines()
    assert first.startswith("curate 0.")
    assert second.startswith("python 3.")
    assert any(line in (f"torch {torch.__version__}", f"torch {release}") for line in more)
