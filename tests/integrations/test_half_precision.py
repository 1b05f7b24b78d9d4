"""Loops under autocast: what they compute in is recognized, and simulated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from curate import LookAheadLoader
from curate.models import FlatModel
from tests.integrations import test_hf_trainer as hf
from tests.integrations import test_lightning as pl
from tests.integrations.loop import loader, losses, net, target
from tests.integrations.prophecy import foretell

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
SAME, OTHER = 3e-5, 1e-4
"""Of a window's way: off in the same precision, by how a processor rounds bfloat16; at least in
another."""


def loop(
    dtype: torch.dtype, *, wrap: Callable[[Any], Any] = lambda model: model, **options: Any
) -> LookAheadLoader:
    """Train for three epochs with each forward pass under autocast."""
    model = wrap(net(dropout=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    wrapped = LookAheadLoader(loader(), model, optimizer, losses, target(), horizon=4, **options)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    model.train()
    for _ in range(3):
        for batch in wrapped:
            with torch.autocast("cpu", dtype):
                loss = losses(model, batch).mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    wrapped.settle()
    return wrapped


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [lambda model: model, compiled], ids=["plain", "compiled"])
def test_it_is_seen_at_the_first_step(
    monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Any], Any]
) -> None:
    errors = foretell(monkeypatch)
    wrapped = loop(torch.bfloat16, wrap=wrap)
    assert wrapped._chooser.training.autocast == torch.bfloat16
    assert errors[0] > OTHER
    assert max(errors[1:]) < SAME
    assert not wrapped._chooser.training.model._forward_pre_hooks


def test_it_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = foretell(monkeypatch)
    loop(torch.bfloat16, autocast=torch.bfloat16)
    assert max(errors) < SAME


def test_weights_cast_before_are_not_used_again() -> None:
    """Autocast keeps what it has cast until the outermost block ends."""
    model = FlatModel(net(dropout=0.0), autocast=torch.bfloat16)
    theta, (x, _) = model.read(), target()

    def outputs(at: torch.Tensor) -> torch.Tensor:
        with model.at(at, training=False) as module, model.computing():
            found: torch.Tensor = module(x).detach()
        return found

    alone = outputs(theta), outputs(2 * theta)
    with torch.autocast("cpu", torch.bfloat16):
        own = model.module(x)
        assert torch.equal(outputs(theta), alone[0])
        assert torch.equal(outputs(2 * theta), alone[1])
        assert torch.equal(model.module(x), own)


def test_a_scaled_loop_is_simulated_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = foretell(monkeypatch)
    wrapped = loop(torch.float16)
    assert wrapped._chooser.training.autocast == torch.float16
    assert max(errors) < 0.02


def test_a_loop_in_full_precision_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = foretell(monkeypatch)
    model = net(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    wrapped = LookAheadLoader(loader(), model, optimizer, losses, target(), horizon=4)
    for batch in wrapped:
        losses(model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.settle()
    assert wrapped._chooser.training.autocast is None
    assert max(errors) < SAME


def test_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = foretell(monkeypatch)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = net(dropout=0.0)
    model, optimizer, batches = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=0.02), loader()
    )
    forward = model.forward
    wrapped = LookAheadLoader(batches, model, optimizer, losses, target(), horizon=4)
    model.train()
    for batch in wrapped:
        accelerator.backward(losses(model, batch).mean())
        optimizer.step()
        optimizer.zero_grad()
    wrapped.settle()
    assert max(errors) < SAME
    assert model.forward is forward


@pytest.mark.parametrize(
    ("case", "optim", "most"),
    [
        ("classifier", "adamw_torch", SAME),
        # sums over tokens are divided at another place, and so rounded otherwise
        ("language model, gradients accumulated", "sgd", 5e-3),
    ],
)
def test_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, optim: str, most: float
) -> None:
    errors = foretell(monkeypatch)
    model, data, arguments = hf.CASES[case]
    options = {"horizon": 3, "rounds": 1}
    made = hf.trainer(tmp_path, model(), data(40), options, bf16=True, optim=optim, **arguments)
    made.train()
    assert made._chooser.training.autocast == torch.bfloat16
    assert max(errors) < most


def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = foretell(monkeypatch)
    module = pl.Module()
    wrapped = pl.LightningLookAhead(loader(), module, losses, target(), horizon=4)
    pl.fit(tmp_path, module, wrapped, precision="bf16-mixed")
    wrapped.settle()
    assert max(errors) < SAME
