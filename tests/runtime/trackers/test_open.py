"""From KIND:WHERE to a tracker, and to its end."""

import sys

import pytest

from curate.errors import OptionError
from curate.runtime.trackers import open_tracker, tracking
from curate.runtime.trackers.open import KINDS
from tests.runtime.trackers.stubs import STUBS, Calls, stub_mlflow


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_opened(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, stub, where, opened = STUBS[kind]
    calls: Calls = []
    monkeypatch.setitem(sys.modules, package, stub(calls))
    tracker = open_tracker(f"{kind}:{where}")
    assert calls[0] == ("open", opened)
    assert type(tracker).__name__ == KINDS[kind][0]


@pytest.mark.parametrize("failed", [False, True])
def test_how_a_run_ended_is_passed_on(failed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = {}
    for kind in ("wandb", "mlflow"):
        name, stub, where, _ = STUBS[kind]
        calls: Calls = []
        monkeypatch.setitem(sys.modules, name, stub(calls))
        try:
            with tracking([f"{kind}:{where}"], {}, pytest.fail):
                if failed:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        ended[kind] = calls[-1]
    status = "FAILED" if failed else "FINISHED"
    assert ended == {"wandb": ("close", int(failed)), "mlflow": ("close", status)}


@pytest.mark.parametrize("text", ["neptune:x", "tensorboard", "tensorboard:", ":x", ""])
def test_what_is_no_tracker_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="must be one of tensorboard:DIRECTORY"):
        open_tracker(text)


def test_one_that_fails_to_close_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = stub_mlflow([])

    def fail(status: str) -> None:
        raise OSError("disk full")

    module.end_run = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    lines: list[str] = []
    with tracking(["mlflow:x"], {}, lines.append):
        pass
    assert lines == ["MLflow failed to close: disk full."]
