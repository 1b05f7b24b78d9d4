"""Look-ahead in Lightning: simulated as it trains, refused where it cannot be followed."""

import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from curate import LightningLookAhead
from curate.errors import OptionError
from tests.integrations.loop import data, loader, losses, net, target
from tests.integrations.prophecy import foretell


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.net = net(dropout=0.0)
        self.options = options
        self.automatic_optimization = not options.get("manual", False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any) -> Tensor:
        batch, weights = batch if isinstance(batch, tuple) else (batch, torch.ones(()))
        return (weights * losses(self, batch)).mean()

    def validation_step(self, batch: Any) -> None:
        losses(self, batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        if self.options.get("several"):
            return [optimizer, torch.optim.SGD(self.net[0].parameters(), lr=0.1)]
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
                "interval": self.options.get("interval", "step"),
                "frequency": self.options.get("frequency", 1),
            },
        }


def fit(folder: Path, module: Module, batches: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=3,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(module, batches, val_dataloaders=DataLoader(data(16), batch_size=16))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "clipped": ({"gradient_clip_val": 0.1}, {}, {}),
    "by epoch": ({}, {}, {"interval": "epoch"}),
    "accumulated": ({"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, {}, {}),
    "accumulated, with a rest": ({"accumulate_grad_batches": 4, "gradient_clip_val": 0.1}, {}, {}),
    "weights": ({}, {"keep": "weights"}, {}),
    "validated on the way": ({"val_check_interval": 2}, {}, {}),
}


@pytest.mark.parametrize(
    ("case", "horizon"), [*((case, 4) for case in CASES), ("plain", 1), ("accumulated", 1)]
)
def test_what_is_simulated_is_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, horizon: int
) -> None:
    errors = foretell(monkeypatch)
    trainer, options, module_options = CASES[case]
    module = Module(**module_options)
    wrapped = LightningLookAhead(
        loader(), module, losses, target(), horizon=horizon, rounds=2, **options
    )
    fit(tmp_path, module, wrapped, **trainer)
    wrapped.settle()
    assert len(wrapped) == 6
    assert len(wrapped.reports) == len(errors) >= 3
    assert all(report.realized is not None for report in wrapped.reports)
    assert max(errors) < 1e-5


def test_another_fit_is_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = foretell(monkeypatch)
    module = Module()
    wrapped = LightningLookAhead(loader(), module, losses, target(), horizon=2, rounds=1)
    for _ in range(2):
        fit(tmp_path, module, wrapped)
        wrapped.settle()
        assert len(wrapped.reports) == 9
    assert len(errors) == 18
    assert max(errors) < 1e-5


@pytest.mark.parametrize(
    ("trainer", "module", "message"),
    [
        ({}, {"manual": True}, "wrap the loader in a LookAheadLoader"),
        ({}, {"several": True, "manual": True}, "wrap the loader in a LookAheadLoader"),
        ({}, {"frequency": 2}, "use frequency 1"),
        (
            {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
            {},
            "clipping by value is not modeled",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(
    tmp_path: Path, trainer: dict[str, Any], module: dict[str, Any], message: str
) -> None:
    made = Module(**module)
    with pytest.raises(OptionError, match=message):
        fit(tmp_path, made, LightningLookAhead(loader(), made, losses, target()), **trainer)


def test_loaders_and_options_are_checked_at_once() -> None:
    module: nn.Module = Module()
    endless: Any = (batch for batch in loader())
    with pytest.raises(OptionError, match="loader of unknown length"):
        LightningLookAhead(endless, module, losses, target())
    with pytest.raises(OptionError, match="horizon must be a number of steps, at least 1"):
        LightningLookAhead(loader(), module, losses, target(), horizon=0)
