"""A loop that is stopped after any step and resumed is the loop that was never stopped."""

import io
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from curate import LookAheadLoader, read_log
from curate.errors import DataError, OptionError
from curate.integrations import paying
from tests.integrations.loop import data, losses, net, target

COUNT, SIZE, EPOCHS = 96, 16, 2
STEPS = EPOCHS * COUNT // SIZE


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortcuts are taken early, and whatever comes of them."""
    monkeypatch.setattr("curate.selection.effort.FIRST_STEPS", 2)
    monkeypatch.setattr("curate.selection.effort.ALIKE", 0.0)


class Rows(Dataset[Any]):
    """Rows with their numbers, noisy as they are drawn: augmented by all sources there are."""

    def __init__(self, augmented: bool = False, seed: int = 0) -> None:
        self._data, self._augmented = data(COUNT, 0.4, seed), augmented
        self._first = seed
        self._own = np.random.default_rng(3)

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, k: int) -> Any:
        x, y, _ = self._data[k]
        if self._augmented:
            x = x + 0.1 * torch.randn(6) + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002
            x = x + 0.1 * float(self._own.random())
        return x, y, k + self._first


class Stateful:
    """A loader that says where it is, as torchdata's StatefulDataLoader does."""

    def __init__(self) -> None:
        self.order, self.at, self.drawn = torch.Generator().manual_seed(7), 0, 0
        self._perm: Tensor | None = None

    def __len__(self) -> int:
        return COUNT // SIZE

    def __iter__(self) -> Iterator[Any]:
        if self._perm is None:
            self._perm, self.at = torch.randperm(COUNT, generator=self.order), 0
        while self.at < len(self):
            rows = self._perm[self.at * SIZE : (self.at + 1) * SIZE]
            self.at += 1
            self.drawn += 1
            yield [part[rows] for part in (*data(COUNT, 0.4).tensors[:2], torch.arange(COUNT))]
        self._perm = None

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "perm": self._perm, "order": self.order.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self._perm = state["at"], state["perm"]
        self.order.set_state(state["order"])


def shuffled(dataset: Any = None, **options: Any) -> DataLoader[Any]:
    order = torch.Generator().manual_seed(7)
    dataset = dataset or Rows()
    return DataLoader(dataset, batch_size=SIZE, shuffle=True, generator=order, **options)


LOADERS: dict[str, Any] = {
    "a generator": shuffled,
    "no generator": lambda: DataLoader(Rows(), batch_size=SIZE, shuffle=True),
    "augmented": lambda: DataLoader(Rows(augmented=True), batch_size=SIZE, shuffle=True),
    "workers": lambda: shuffled(num_workers=1),
    "stateful": Stateful,
}
LOOPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "half": ("a generator", {"horizon": 3}),
    "one step ahead": ("no generator", {"horizon": 1, "rounds": 1}),
    "fast": ("a generator", {"horizon": 1, "rounds": 1, "effort": "fast"}),
    "auto": ("augmented", {"horizon": 3, "keep": "auto", "rounds": 1}),
    "auto, one step ahead": ("stateful", {"horizon": 1, "keep": "auto", "rounds": 1}),
    "accumulated": ("stateful", {"horizon": 2, "accumulate": 2, "rounds": 2}),
    "weights": ("stateful", {"horizon": 4, "keep": "weights"}),
    "labels and groups": (
        "a generator",
        {"horizon": 4, "label": lambda b: b[1], "group_by": lambda b: b[1]},
    ),
    "autocast": ("no generator", {"horizon": 3, "rounds": 1, "keep": 0.5}),
    "everything": ("a generator", {"keep": 1.0, "rounds": None, "log": None}),
}


class Loop:
    """A training with a checkpoint after every step, in one process or as resumed in another."""

    def __init__(self, case: str, log: Path | None, **changes: Any) -> None:
        name, options = LOOPS[case]
        self.half = case == "autocast"
        self.accumulate = options.get("accumulate", 1)
        self.model = net()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        settings = {"log": log, "row": lambda batch: batch[2], "rounds": 2} | options | changes
        self.loader = LookAheadLoader(
            LOADERS[name](),
            self.model,
            self.optimizer,
            losses,
            target(),
            scheduler=self.scheduler,
            **settings,
        )
        self.epoch = 0
        self.rows: list[list[int]] = []

    def run(self, saved: Any = lambda: None, stop: int | None = None) -> None:
        """Train, from wherever it is, to the end or until so many batches were trained on."""
        self.model.train()
        for epoch in range(self.epoch, EPOCHS):
            self.epoch = epoch
            for handed in self.loader:
                batch, weights = handed if isinstance(handed, tuple) else (handed, torch.ones(()))
                self.rows.append(batch[2].tolist())
                with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                    each = losses(self.model, batch)
                (weights * each).mean().div(self.accumulate).backward()
                if len(self.rows) % self.accumulate == 0:
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    self.scheduler.step()
                    saved()
                if len(self.rows) == stop:
                    return

    def save(self) -> bytes:
        file = io.BytesIO()
        name, keys, *more = np.random.get_state()  # noqa: NPY002
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "loader": self.loader.state_dict(),
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": (name, torch.tensor(keys), *more),
            "epoch": self.epoch,
            "rows": self.rows,
        }
        torch.save(state, file)
        return file.getvalue()

    def load(self, content: bytes) -> None:
        state = torch.load(io.BytesIO(content), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.loader.load_state_dict(state["loader"])
        self.epoch, self.rows = state["epoch"], [*state["rows"]]
        torch.set_rng_state(state["torch"])
        random.setstate(state["python"])
        name, keys, *more = state["numpy"]
        np.random.set_state((name, keys.numpy(), *more))  # noqa: NPY002

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002


def log_of(folder: Path) -> pl.DataFrame:
    return read_log(folder).drop("seconds")


@pytest.mark.parametrize("case", LOOPS)
def test_stopped_after_any_step_and_resumed_it_is_the_same_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(paying, "REST", 2)
    logs = LOOPS[case][1].get("log", tmp_path) is not None
    seed(11)
    whole = Loop(case, tmp_path / "whole" if logs else None)
    checkpoints: list[bytes] = []

    def keep() -> None:
        checkpoints.append(whole.save())
        if logs:
            shutil.copytree(tmp_path / "whole", tmp_path / str(len(checkpoints)))

    whole.run(keep)
    assert len(checkpoints) == STEPS // whole.accumulate
    for number, content in enumerate(checkpoints, start=1):
        seed(1000 + number)  # another process
        folder = tmp_path / str(number) if logs else None
        again = Loop(case, folder)
        again.load(content)
        again.run()
        assert torch.equal(again.weights(), whole.weights()), number
        assert again.rows == whole.rows, number
        if folder is not None:
            assert log_of(folder).equals(log_of(tmp_path / "whole")), number


def checkpoints_of(case: str, folder: Path | None, stop: int | None) -> tuple[Loop, list[bytes]]:
    seed(11)
    loop, contents = Loop(case, folder), list[bytes]()
    loop.run(lambda: contents.append(loop.save()), stop)
    return loop, contents


def test_what_a_stopped_run_logged_after_its_state_was_taken_is_not_read(tmp_path: Path) -> None:
    whole, contents = checkpoints_of("half", tmp_path, None)
    expected = log_of(tmp_path)
    for stopped in (4, 7, 3):  # three are killed at the end, each later than its checkpoint
        again = Loop("half", tmp_path)
        again.load(contents[stopped - 1])
        again.run()
        assert torch.equal(again.weights(), whole.weights())
        assert log_of(tmp_path).equals(expected)
    other = Loop("half", tmp_path)  # another training in the same folder stays another
    other.run()
    assert log_of(tmp_path)["run"].unique().to_list() == [0, 4]
    elsewhere = Loop("half", tmp_path / "other")
    elsewhere.load(contents[3])
    elsewhere.run()
    assert log_of(tmp_path / "other")["window"].min() == 2


@pytest.mark.parametrize("stop", [4, 6])
def test_a_loop_that_was_left_goes_on_from_the_state_taken_afterwards(
    tmp_path: Path, stop: int
) -> None:
    whole, _ = checkpoints_of("half", tmp_path / "whole", None)
    left, _ = checkpoints_of("half", tmp_path / "left", stop)
    content = left.save()
    again = Loop("half", tmp_path / "left")
    again.load(content)
    again.load(again.save())  # before it has begun
    again.run()
    assert torch.equal(again.weights(), whole.weights())
    assert log_of(tmp_path / "left").equals(log_of(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["a generator", "stateful"])
def test_a_state_taken_between_epochs_goes_on_with_the_next(name: str) -> None:
    seed(3)

    def loader() -> LookAheadLoader:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        return LookAheadLoader(LOADERS[name](), model, optimizer, losses, target())

    def epoch(batches: LookAheadLoader) -> list[list[int]]:
        return [batch[2].tolist() for batch in batches]

    whole, again = loader(), loader()
    first = epoch(whole)
    again.load_state_dict(whole.state_dict())
    assert epoch(again) == epoch(whole) != first


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "horizon": ({"horizon": 2}, "a loop with horizon 3, and this one has 2"),
    "keep": ({"keep": 0.7}, "a loop with keep 0.5, and this one has 0.7"),
    "label": ({"label": lambda b: b[1]}, "a loop with label None, and this one has 'a function'"),
    "accumulate": ({"accumulate": 2}, "a loop with accumulate 1, and this one has 2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_of_other_options_is_refused_and_nothing_is_loaded(change: str) -> None:
    _, contents = checkpoints_of("half", None, 2)
    state = torch.load(io.BytesIO(contents[-1]), weights_only=True)["loader"]
    options, message = CHANGES[change]
    other = Loop("half", None, **options)
    before = other.save()
    with pytest.raises(OptionError, match=message):
        other.loader.load_state_dict(state)
    assert other.save() == before


def test_a_state_of_another_optimizer_model_or_thing_is_refused() -> None:
    _, contents = checkpoints_of("half", None, 2)
    state = torch.load(io.BytesIO(contents[-1]), weights_only=True)["loader"]
    model = net()
    options: dict[str, Any] = {"horizon": 3, "rounds": 2}

    def wrapped(optimizer: Any) -> LookAheadLoader:
        return LookAheadLoader(shuffled(), model, optimizer, losses, target(), **options)

    with pytest.raises(OptionError, match="with optimizer 'AdamW', and this one has 'SGD'"):
        wrapped(torch.optim.SGD(model.parameters())).load_state_dict(state)
    with pytest.raises(OptionError, match=r"with parameters '4 .*', and this one has '2 "):
        wrapped(torch.optim.AdamW(model[0].parameters())).load_state_dict(state)  # type: ignore
    with pytest.raises(OptionError, match="this is no state of look-ahead"):
        wrapped(torch.optim.AdamW(model.parameters())).load_state_dict(model.state_dict())


@pytest.mark.parametrize("row", [None, lambda batch: batch[2]])
def test_other_batches_than_those_decided_on_are_refused(row: Any) -> None:
    _, contents = checkpoints_of("half", None, 2)
    again = Loop("half", None, row=row)
    again.load(contents[-1])
    again.loader.loader = DataLoader(Rows(), batch_size=SIZE)  # in another order
    expected = "draws from 4 generators of random numbers, and the one .* from 5"
    with pytest.raises(OptionError, match=expected):
        next(iter(again.loader))
    again.load(contents[-1])
    again.loader.loader = shuffled(Rows(seed=1))
    with pytest.raises(DataError, match="next 1 batches are not those that were decided on"):
        next(iter(again.loader))
    again.load(contents[-1])
    again.loader.loader = shuffled(Subset(Rows(), range(20)))
    with pytest.raises(DataError, match=r"ends after 2 batches|next 1 batches are not those"):
        next(iter(again.loader))
