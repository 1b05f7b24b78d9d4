"""Accelerate needs nothing of its own: what it prepares can be wrapped."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, TensorDataset

from curate import LookAheadLoader
from curate.errors import OptionError
from tests.integrations.loop import data, loader, losses, net, target
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


@pytest.mark.parametrize("stop", [2, 3, 6, 8, 12, 14])
@pytest.mark.parametrize("seedable", [True, False])
def test_a_loop_goes_on_where_it_was_in_a_prepared_loader(seedable: bool, stop: int) -> None:
    """Accelerate counts its passes, and draws the order of each by their number."""
    config = DataLoaderConfiguration(use_seedable_sampler=seedable)
    accelerator = Accelerator(cpu=True, dataloader_config=config)

    def rows(resume: bool) -> list[Any]:
        torch.manual_seed(4)
        model, order = net(), torch.Generator().manual_seed(2)
        raw = torch.optim.SGD(model.parameters(), lr=0.0)
        table = TensorDataset(*data().tensors[:2], torch.arange(96))
        batches = DataLoader(table, batch_size=16, shuffle=True, generator=order)
        model, optimizer, batches = accelerator.prepare(model, raw, batches)
        chosen = LookAheadLoader(batches, model, optimizer, losses, target(), horizon=2, keep=0.9)
        seen, first = [], 0
        if resume:
            chosen.load_state_dict(state["loader"])
            seen, first = [*state["seen"]], state["epoch"]
        for epoch in range(first, 3):
            for batch in chosen:
                seen.append(batch[2].tolist())
                if len(seen) == stop and not resume:
                    state.update(loader=chosen.state_dict(), seen=[*seen], epoch=epoch)
        return seen

    state: dict[str, Any] = {}
    assert rows(resume=False) == rows(resume=True)
