"""Accelerate needs nothing of its own: what it prepares can be wrapped."""

import pytest
import torch
from accelerate import Accelerator

from curate import LookAheadLoader
from curate.errors import OptionError
from tests.integrations.loop import loader, losses, net, target
from tests.integrations.prophecy import foretell

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_what_is_simulated_is_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = foretell(monkeypatch)
    accelerator = Accelerator(cpu=True)
    model = net(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    model, optimizer, batches, scheduler = accelerator.prepare(
        model, optimizer, loader(), scheduler
    )
    wrapped = LookAheadLoader(
        batches, model, optimizer, losses, target(), horizon=4, scheduler=scheduler, clip_norm=0.1
    )
    model.train()
    for _ in range(3):
        for batch in wrapped:
            accelerator.backward(losses(model, batch).mean())
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    wrapped.settle()
    assert len(errors) == 6
    assert max(errors) < 1e-5


def test_its_gradient_accumulation_is_refused() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    batches = accelerator.prepare(loader())
    with pytest.raises(OptionError, match="wrap the loader you had before"):
        LookAheadLoader(batches, model, optimizer, losses, target())
