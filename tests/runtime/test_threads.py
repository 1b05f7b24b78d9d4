"""Tiny steps get one thread, large ones what there is."""

import pytest
import torch

from curate.runtime.threads import TINY_STEP, suitable_threads


def test_one_thread_for_a_tiny_step_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    with suitable_threads(TINY_STEP - 1) as threads:
        assert threads == torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with suitable_threads(TINY_STEP) as threads:
        assert threads == 2


def test_the_users_choice_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    with suitable_threads(0) as threads:
        assert threads == 2
