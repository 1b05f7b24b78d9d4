"""Adafactor: which moments it keeps, and how far it steps."""

import pytest
import torch

from curate.errors import OptimizerError
from curate.rules import Adafactor, initial_state


def test_a_matrix_has_a_row_and_a_column_and_a_vector_its_squares() -> None:
    slots = Adafactor(((3, 5), (2, 3, 4), (7,))).init(torch.zeros(15 + 24 + 7))
    sizes = {name: len(slot) for name, slot in slots.items()}
    assert sizes == {"rows": 3 + 2 * 3, "columns": 5 + 2 * 4, "v": 7}
    assert Adafactor(((7,),)).init(torch.zeros(7)).keys() == {"v"}


def test_a_step_is_in_proportion_to_the_parameter_and_its_rms_is_clipped() -> None:
    theta = torch.full((4,), 8.0, dtype=torch.float64)
    rule = Adafactor(((4,),), d=0.5)
    after = rule.update(torch.ones(4).double(), initial_state(rule, theta), (0.25,))
    torch.testing.assert_close(after.theta, theta - 0.25 * 8.0 * 0.5)


def test_a_first_eps_of_zero_is_refused() -> None:
    with pytest.raises(OptimizerError, match=r"the first eps must be above 0 but got 0\.0"):
        Adafactor(((2, 2),), eps=(0.0, 1e-3))
