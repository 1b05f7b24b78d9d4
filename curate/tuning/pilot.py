"""A pilot: one run on everything at a learning rate, looked at from every horizon.

Along the recipe's own trajectory, with nothing dropped, some windows of every horizon K are
scored once, and a few removals are followed in each. That shows, before anything is selected,
how large the influences of every horizon are and how far off they are expected to be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan

from curate.errors import NonFiniteError
from curate.influence import ErrorProxy, expected_error
from curate.rules import State
from curate.selection.judge import Judge
from curate.selection.policies import LookAhead
from curate.trajectory import Step, forward_step, ignore_step
from curate.tuning.grid import PROBING, looked_at


@dataclass(frozen=True)
class View:
    """What a pilot shows at one horizon, over the candidates in the windows it looked at.

    signal: mean |influence|. error: its expected absolute error, made of `jump` and
    `propagation`, from so many `probes`: see `ErrorProxy`. failure: why there is nothing to show.
    """

    horizon: int
    probes: int = 0
    signal: float = nan
    error: float = nan
    jump: float = nan
    propagation: float = nan
    failure: str | None = None

    def distrust(self, most: float) -> str | None:
        """Why scores at this horizon are not worth a selection run; None if they may be.

        most: the largest error that is tolerated, in units of the signal.
        """
        if self.failure is not None or self.error <= most * self.signal:
            return self.failure
        return (
            f"influences of {self.signal:.2g} are expected to be off by {self.error:.2g}, "
            f"more than {most:g} of their size"
        )


def run_pilot(
    judge: Judge,
    state: State,
    steps: Sequence[Step],
    horizons: Sequence[int],
    coverage: float,
    on_step: Callable[[], None] = ignore_step,
) -> tuple[State, list[View]]:
    """Train on everything from `state` through `steps`, looking ahead from every horizon.

    Cost: a run of plain training, and per horizon a `coverage` of the run scored in one round
    with `PROBING` of that for probes. Memory: as one window of `Selector`.

    Returns:
        the state at the end, and a view per horizon.
    """
    judge = replace(judge, policy=LookAhead(1))
    exact = judge.scoring.jump_bytes is not None
    proxies = {k: ErrorProxy(PROBING, exact=exact, targets=len(judge.targets)) for k in horizons}
    failures: dict[int, str] = {}
    windows = {k: {w.start: w for w in looked_at(len(steps), k, coverage)} for k in horizons}
    for first, step in enumerate(steps):
        for k in horizons:
            if (at := windows[k].get(first)) is None or k in failures:
                continue
            window = steps[at.start : at.stop]
            probing = proxies[k].plan(window, judge.target_rows)
            try:
                judged = judge.judge(state, window, probing=probing, first_step=first)
            except NonFiniteError as error:
                failures[k] = str(error)
                continue
            assert judged.scores is not None
            proxies[k].enter(first, window, judged.scores, judge.target_rows)
        state, _ = forward_step(judge.task, judge.rule, state, step)
        on_step()
    views = [
        View(k, failure=failures[k]) if k in failures else _view(k, proxies[k]) for k in horizons
    ]
    return state, views


def _view(horizon: int, proxy: ErrorProxy) -> View:
    mean = expected_error(proxy.windows())
    sizes = mean["signal"], mean["error"], mean["jump"], mean["propagation"]
    return View(horizon, int(mean["probes"]), *sizes)
