"""What belongs to a release: its version, what it changes, how it is cited, how it starts."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import curate
from curate.recipe.load import parse
from tests.house import PROJECT

TOP = {"LICENSE", "README.md", "curate", "examples", "pyproject.toml", "recipes", "tests"}


def project() -> dict[str, Any]:
    with (PROJECT / "pyproject.toml").open("rb") as file:
        return dict(tomllib.load(file)["project"])


def test_the_top_level_holds_what_was_decided() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True)
    names = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP


def test_changes_and_citation_are_of_this_version() -> None:
    changes = (PROJECT / ".github" / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+),", changes, re.MULTILINE)
    assert newest is not None
    citation = parse((PROJECT / ".github" / "CITATION.cff").read_text())
    assert newest[1] == citation["version"] == curate.__version__ == project()["version"]
    assert citation["license"] == project()["license"]
    assert "2605.18814" in citation["references"][0]["url"]


def test_changes_name_the_oldest_versions_that_are_asked_for() -> None:
    changes = (PROJECT / ".github" / "CHANGELOG.md").read_text()
    (line,) = re.findall(r"^- Oldest versions: ([^;]*);", changes, re.MULTILINE)
    for name, version in re.findall(r"(\w+) ([\d.]+)", line):
        assert f"{name}>={version}" in project()["dependencies"]


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "curate", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith(f"curate {curate.__version__}\npython 3.")
