"""Normal quantiles of many numbers against Python's, one by one."""

from statistics import NormalDist

import numpy as np

from curate.selection.policies.quantiles import normal_quantiles


def test_quantiles_are_those_of_python() -> None:
    tail = 10.0 ** -np.arange(1, 300)
    shares = np.concatenate([np.linspace(1e-9, 1 - 1e-9, 2001), tail])
    expected = [NormalDist().inv_cdf(share) for share in shares]
    np.testing.assert_allclose(normal_quantiles(shares), expected, rtol=1e-14, atol=1e-15)
    assert normal_quantiles(np.array([0.5])) == 0
