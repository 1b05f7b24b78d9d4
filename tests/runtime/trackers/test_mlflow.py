"""MLflow, with a stand-in for its package."""

import sys

import pytest

from curate.runtime.trackers import open_tracker
from tests.runtime.trackers.stubs import Calls, stub_mlflow


@pytest.mark.parametrize(("failed", "status"), [(False, "FINISHED"), (True, "FAILED")])
def test_a_run_of_an_experiment(failed: bool, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Calls = []
    monkeypatch.setitem(sys.modules, "mlflow", stub_mlflow(calls))
    tracker = open_tracker("mlflow:digits", {"policy": "loss"})
    tracker.log({"a": 0.5, "b": 1.0}, 3)
    tracker.close(failed=failed)
    assert calls == [
        ("open", "digits"),
        ("start", None),
        ("config", "{'policy': 'loss'}"),
        ("log", ({"a": 0.5, "b": 1.0}, 3)),
        ("close", status),
    ]
