"""A loop that asks whether choosing pays: the rule by itself, and loops on made data."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from curate import LookAheadLoader
from curate.datasets import BatchExamples
from curate.errors import OptionError
from curate.influence import Target
from curate.integrations.paying import FEWEST, RECENT, REST, Paying, halved


def test_gains_well_above_0_turn_choosing_on_and_losses_turn_it_off() -> None:
    paying = Paying()
    for gain in (0.1, 0.12, 0.09, 0.11):
        assert paying.due()
        assert not paying.pays
        paying.enter(gain)
    assert paying.pays
    for _ in range(FEWEST):
        assert paying.due()
        paying.enter(-0.1)
    assert not paying.pays


def test_after_a_trial_that_fails_windows_rest_longer_and_longer() -> None:
    paying = Paying()
    for rest in (REST, 2 * REST, 4 * REST):
        for _ in range(FEWEST):
            assert paying.due()
            paying.enter(-1.0)
        for _ in range(rest):
            assert not paying.due()


def test_gains_that_are_noise_come_to_an_end() -> None:
    paying = Paying()
    for k in range(RECENT):
        assert paying.due()
        paying.enter(0.01 + (-1) ** k)
        if not paying.due():
            break
    assert not paying.pays


def test_targets_are_halved_row_by_row() -> None:
    batches = [{"x": torch.arange(5)}, {"x": torch.arange(5, 7)}]
    one, other = halved([Target("t", BatchExamples(batches))], seed=0)
    seen = [torch.cat([batch["x"] for batch in half[0].examples.batches]) for half in (one, other)]
    assert sorted(torch.cat(seen).tolist()) == [*range(7)]
    assert [len(part) for part in seen] == [3, 4]
    with pytest.raises(OptionError, match="too few"):
        halved([Target("t", BatchExamples([{"x": torch.zeros(1)}]))], seed=0)


def trained(wrong: float, seed: int = 0, **options: Any) -> tuple[float, LookAheadLoader | None]:
    """Test loss of a small model after a loop over 800 rows, some labels wrong, 10 epochs."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(10, generator=random)

    def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, 10, generator=random)
        return x, (x @ weights > 0).long()

    x, y = rows(800)
    y = torch.where(torch.rand(800, generator=random) < wrong, 1 - y, y)
    target, (test_x, test_y) = rows(300), rows(1000)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 32), nn.GELU(), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    loader: Any = DataLoader(
        TensorDataset(x, y),
        batch_size=32,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    wrapped = None
    if options.get("keep") != 1.0:
        losses = lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")  # noqa: E731
        options = {"keep": "auto", "rounds": None} | options
        loader = wrapped = LookAheadLoader(loader, model, optimizer, losses, target, **options)
    for _ in range(10):
        for batch in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
    with torch.no_grad():
        return float(F.cross_entropy(model(test_x), test_y)), wrapped


@pytest.mark.filterwarnings("ignore:effort=")
@pytest.mark.parametrize("horizon", [1, 4])
def test_on_wrong_labels_it_chooses_and_ends_better(horizon: int) -> None:
    plain, _ = trained(0.3, keep=1.0)
    found, loader = trained(0.3, horizon=horizon)
    assert loader is not None
    assert found < 0.9 * plain
    cut = [report for report in loader.reports if report.kept < report.candidates]
    assert len(cut) > len(loader.reports) / 2
    measured = [report for report in loader.reports[:-1] if report.target_loss is not None]
    assert all(report.gain is not None for report in measured)
    assert len(measured) > len(loader.reports) / 10


def test_on_clean_data_it_ends_as_plain_training_does() -> None:
    losses = [
        (trained(0.0, seed, keep=1.0)[0], trained(0.0, seed, horizon=4)[0]) for seed in range(3)
    ]
    plain, found = np.array(losses).T
    assert abs((found - plain).mean()) < plain.std(ddof=1) / 3**0.5 + 0.005


def test_windows_that_rest_go_through_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Paying, "due", lambda _: False)
    plain, _ = trained(0.3, keep=1.0)
    found, loader = trained(0.3)
    assert loader is not None
    assert found == plain
    assert loader.reports == []
