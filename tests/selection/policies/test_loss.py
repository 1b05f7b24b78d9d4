"""Small loss: what is easy is worth more."""

import numpy as np

from curate.selection.policies import Evidence, Offer, SmallLoss


def test_the_value_is_the_negative_loss() -> None:
    losses = np.array([0.1, 5.0, 0.0])
    assert SmallLoss().values(Offer(np.arange(3), np.ones(3), losses)).tolist() == [-0.1, -5, 0]
    assert SmallLoss.needs is Evidence.LOSS
