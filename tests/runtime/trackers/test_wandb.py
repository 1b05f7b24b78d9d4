"""Weights & Biases, with a stand-in for its package."""

import sys

import pytest

from curate.runtime.trackers import open_tracker
from tests.runtime.trackers.stubs import Calls, stub_wandb


@pytest.mark.parametrize(("where", "opened"), [("lab/p", "lab/p"), ("p", "None/p")])
@pytest.mark.parametrize("failed", [False, True])
def test_a_run_of_a_project(
    where: str, opened: str, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Calls = []
    monkeypatch.setitem(sys.modules, "wandb", stub_wandb(calls))
    tracker = open_tracker(f"wandb:{where}", {"policy": "loss"})
    tracker.log({"a": 0.5, "b": 1.0}, 3)
    tracker.close(failed=failed)
    assert calls == [
        ("open", opened),
        ("config", "{'policy': 'loss'}"),
        ("log", ({"a": 0.5, "b": 1.0}, 3)),
        ("close", int(failed)),
    ]
