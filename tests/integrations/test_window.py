"""What is known of a window: what came of it, and how much of it is still to be handed out."""

import numpy as np

from curate.integrations.window import Window, WindowReport


def test_a_report_compares_what_came_with_what_was_predicted() -> None:
    report = WindowReport(0, 2, 32, 16, 0.1, 1.0, predicted=-0.2, horizon=4)
    assert report.ratio is None
    report.realized = -0.1
    assert report.ratio == 0.5
    assert report.metrics()["kept"] == 0.5
    assert report.metrics()["horizon"] == 4
    report.predicted = None
    assert report.ratio is None


def test_a_window_knows_what_the_loop_was_not_given_yet() -> None:
    window = Window([1, 2, 3], [np.ones(4)] * 3, [1.0] * 3)
    assert window.ahead == 3
    window.handed = 2
    assert window.ahead == 1
    assert not window.watched
