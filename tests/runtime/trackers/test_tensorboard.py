"""TensorBoard, with a stand-in for torch's writer."""

import sys

import pytest

from curate.runtime.trackers import open_tracker
from tests.runtime.trackers.stubs import Calls, stub_tensorboard


def test_every_number_is_a_scalar_and_on_disk_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Calls = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub_tensorboard(calls))
    tracker = open_tracker("tensorboard:runs/a:b", {"policy": "loss"})
    tracker.log({"a": 0.5, "b": 1.0}, 3)
    assert calls == [
        ("open", "runs/a:b"),
        ("config", 'config:     {\n      "policy": "loss"\n    }'),
        ("log", ({"a": 0.5}, 3)),
        ("log", ({"b": 1.0}, 3)),
        ("flush", None),
    ]
    tracker.close(failed=True)
    assert calls[-1] == ("close", None)
