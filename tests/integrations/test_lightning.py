"""Look-ahead in Lightning: simulated as it trains, refused where it cannot be followed."""

import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from curate import LightningLookAhead, read_log
from curate.errors import OptionError, SimulationError
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


def fit(
    folder: Path, module: Module, batches: Any, ckpt_path: Path | None = None, **options: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"max_epochs": 3, "enable_checkpointing": False} | options,
        )
        held_out = DataLoader(data(16), batch_size=16)
        trainer.fit(module, batches, val_dataloaders=held_out, ckpt_path=ckpt_path)


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


def test_options_are_checked_at_once() -> None:
    module: nn.Module = Module()
    with pytest.raises(OptionError, match="horizon must be a number of steps, at least 1"):
        LightningLookAhead(loader(), module, losses, target(), horizon=0)


class Own(Module):
    """A module with one more thing of its own."""


class OwnBackward(Own):
    def backward(self, loss: Tensor) -> None:
        (3 * loss).backward()


class AfterBackward(Own):
    def on_after_backward(self) -> None:
        self.net[0].weight.grad *= torch.arange(6) % 2


class BeforeStep(Own):
    def on_before_optimizer_step(self, _: Any) -> None:
        for p in self.parameters():
            p.grad.sign_()


class OwnClipping(Own):
    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1e-3)


class OwnRate(Own):
    def optimizer_step(self, *args: Any) -> None:
        _, _, optimizer, closure = args
        for group in optimizer.param_groups:
            group["lr"] = 0.001 * (self.trainer.global_step + 1)
        optimizer.step(closure=closure)


class OwnBatches(Own):
    def on_before_batch_transfer(self, batch: Any, _: int) -> Any:
        return [-batch[0], *batch[1:]] if self.training else batch


class Boxed(Own):
    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        for p in self.parameters():
            p.clamp_(-0.1, 0.1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OwnBackward, "it is 3 times as large"),
        (AfterBackward, "gradient .* is not that of the objective"),
        (BeforeStep, "gradient .* is not that of the objective"),
        (OwnClipping, "it is [0-9.e-]+ times as large"),
        (OwnRate, "a learning rate of 0.001 where 0.02 was foreseen"),
        (OwnBatches, "gradient .* is not that of the objective"),
        (Boxed, "the update moves net.0.weight"),
    ],
)
def test_a_module_that_trains_in_its_own_way_is_told(
    tmp_path: Path, kind: type[Own], message: str
) -> None:
    module = kind()
    chosen = LightningLookAhead(loader(), module, losses, target(), horizon=2, keep=0.5)
    with pytest.raises(SimulationError, match=f"step [01] of the loop: .*{message}"):
        fit(tmp_path, module, chosen)


def test_an_accumulation_that_changes_is_told(tmp_path: Path) -> None:
    module = Module()
    chosen = LightningLookAhead(loader(), module, losses, target(), horizon=2, keep=0.5)
    schedule = lightning.pytorch.callbacks.GradientAccumulationScheduler({0: 2})
    with pytest.raises(SimulationError, match="is not that of the objective"):
        fit(tmp_path, module, chosen, callbacks=[schedule])


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"limit_train_batches": 3}, [2, 1]),
        ({"max_steps": 3}, [2, 1]),
        ({"limit_train_batches": 0.5}, [2, 1]),
    ],
)
def test_windows_end_where_training_does(
    tmp_path: Path, options: dict[str, Any], steps: list[int]
) -> None:
    module = Module()
    chosen = LightningLookAhead(loader(), module, losses, target(), horizon=2, keep=0.5)
    fit(tmp_path, module, chosen, **{"max_epochs": 1} | options)
    assert [report.steps for report in chosen.reports] == steps


class Numbered(Module):
    """Leaves the rows' numbers, which are only for the log, out of the loss."""

    def training_step(self, batch: Any) -> Tensor:
        return losses(self, batch[:2]).mean()


def resumable(folder: Path, log: Path, start: Path | None = None, **options: Any) -> Any:
    """A fit with a checkpoint after every step; the weights at its end."""
    torch.manual_seed(7)
    module = Numbered()
    order = torch.Generator().manual_seed(3)
    rows = TensorDataset(*data(96, 0.4).tensors[:2], torch.arange(96))
    batches = DataLoader(rows, batch_size=16, shuffle=True, generator=order)
    settings = {"horizon": 4, "rounds": 1, "keep": "auto", "log": log, "row": lambda b: b[2]}
    chosen = LightningLookAhead(batches, module, losses, target(), **settings)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1
    )
    epochs = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=folder, filename="end-{epoch}", save_on_train_epoch_end=True, save_top_k=-1
    )
    settings = {"callbacks": [keep, epochs], "enable_checkpointing": True, "max_epochs": 2}
    fit(folder, module, chosen, ckpt_path=start, **settings | options)
    chosen.settle()
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2}, {"limit_train_batches": 5, "val_check_interval": 2}],
)
def test_a_fit_from_a_checkpoint_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    expected = resumable(tmp_path / "whole", tmp_path / "log", **options)
    log = read_log(tmp_path / "log").drop("seconds")
    paths = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(paths) >= 8
    for path in paths:
        end = resumable(tmp_path / path.stem, tmp_path / "log", path, **options)
        assert torch.equal(end, expected), path
        assert read_log(tmp_path / "log").drop("seconds").equals(log), path


class Stream(IterableDataset[Any]):
    """Rows without an end that is known."""

    def __iter__(self) -> Any:
        return iter(TensorDataset(*data(96, 0.4).tensors))


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({"limit_train_batches": 6, "max_epochs": 2}, 12),
        ({"limit_train_batches": 4, "max_epochs": 2, "val_check_interval": 2}, 8),
        ({"max_steps": 5, "max_epochs": -1}, 5),
        ({"max_steps": 2, "max_epochs": -1, "accumulate_grad_batches": 2}, 2),
    ],
)
def test_a_loader_without_a_length_is_followed_where_the_trainer_has_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], steps: int
) -> None:
    errors, ends = foretell(monkeypatch), []
    for batches in (DataLoader(Stream(), batch_size=16), [*DataLoader(Stream(), batch_size=16)]):
        torch.manual_seed(5)
        module = Module()
        chosen = LightningLookAhead(batches, module, losses, target(), horizon=4, rounds=1)
        fit(tmp_path, module, chosen, **limits)
        chosen.settle()
        assert sum(report.steps for report in chosen.reports) == steps
        ends.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*ends)
    assert max(errors) < 1e-5


def test_a_loader_without_a_length_is_refused_where_nothing_tells_it(tmp_path: Path) -> None:
    def chosen(module: Module) -> LightningLookAhead:
        batches = DataLoader(Stream(), batch_size=16)
        return LightningLookAhead(batches, module, losses, target(), horizon=2, keep=0.5)

    for limits in ({"max_epochs": 1}, {"max_epochs": 1, "limit_train_batches": 1.0}):
        module = Module()
        with pytest.raises(OptionError, match=r"limit_train_batches, .* or max_steps"):
            fit(tmp_path, module, chosen(module), **limits)
    module = Module()
    with pytest.raises(OptionError, match=r"ended after 6 batches, .* told of 9; .*=6\."):
        fit(tmp_path, module, chosen(module), max_epochs=1, limit_train_batches=9)
