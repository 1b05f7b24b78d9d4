"""The oracle of all integrations: what was simulated is what then happens.

At each window the decided steps are replayed by our own forward steps from
where the caller's training stands; when the caller's loop has trained on what
it was handed, its parameters must be where the replay ended.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from curate.datasets import BatchExamples
from curate.integrations import Decision, LiveLoop
from curate.trajectory import Task, replay


def foretell(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Largest difference of a parameter, window by window, over the distance gone."""
    errors: list[float] = []
    choose, settle = LiveLoop.choose, LiveLoop.settle

    def watched_choose(self: Any, window: Sequence[Any]) -> list[Decision]:
        decisions = choose(self, window)
        if self._unsettled is None:  # nothing was decided
            return decisions
        model, live = self.training.read()
        state, steps = live.state(), []
        flat = iter(decisions)
        for step in self._unsettled.judged.steps:
            lengths = np.diff([0, *step.cuts, len(step.rows)])
            own = [decision for _, decision in zip(lengths, flat, strict=False)]
            if not own:
                break
            weights = torch.from_numpy(np.concatenate([decision.weights for decision in own]))
            steps.append(step.reweight(weights.float()).keep(weights.nonzero().flatten()))
        task = Task(model, self._objective, BatchExamples(list(window)))
        with self.training.simulated(self._objective):
            self.expected = replay(task, live.rule, state, steps).theta
        self.start = state.theta
        return decisions

    def watched_settle(self: Any) -> None:
        if self._unsettled is not None:
            theta = self.training.read()[0].read()
            gone = (theta - self.start).abs().max()
            errors.append(float((theta - self.expected).abs().max() / gone))
        settle(self)

    monkeypatch.setattr(LiveLoop, "choose", watched_choose)
    monkeypatch.setattr(LiveLoop, "settle", watched_settle)
    return errors
