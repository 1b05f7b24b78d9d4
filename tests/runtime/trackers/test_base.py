"""A tracker that fails does not take the run with it."""

from collections.abc import Mapping

import pytest

from curate.runtime.trackers import Careful, careful
from curate.runtime.trackers.base import log_metrics
from tests.runtime.trackers.stubs import Recorder


def test_from_python_a_failure_is_a_warning_and_an_interrupt_an_interrupt() -> None:
    recorder = Recorder(fail_at=2)
    watched = Careful(recorder)
    watched.log({"a": 1.0}, 0)
    with pytest.warns(RuntimeWarning, match="Recorder failed with ConnectionError"):
        watched.log({"a": 2.0}, 1)
    watched.log({"a": 3.0}, 2)
    assert recorder.told == [(0, {"a": 1.0})]
    assert recorder.asked == 2

    class Stopped:
        def log(self, metrics: Mapping[str, float], step: int) -> None:
            raise KeyboardInterrupt(metrics, step)

    with pytest.raises(KeyboardInterrupt):
        Careful(Stopped()).log({}, 0)


def test_careful_ones_are_not_wrapped_twice() -> None:
    one, two = Careful(Recorder()), Recorder()
    first, second = careful([one, two])
    assert first is one
    assert isinstance(second, Careful)


def test_only_what_is_known_is_told_of_by_its_full_name() -> None:
    one, two = Recorder(), Recorder()
    log_metrics([one, two], "window", {"kept": 1, "error": None}, 3)
    assert one.told == two.told == [(3, {"window/kept": 1.0})]
