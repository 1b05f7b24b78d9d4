"""Loaders of all kinds: what they give, and where a loop is in them when it goes on."""

import copy
import io
import resource
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset as Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from curate import LookAheadLoader
from curate.errors import DataError
from curate.integrations.place import content_of
from tests.integrations.loop import data, net, target

COUNT, SIZE, EPOCHS = 96, 16, 2


def table() -> Table:
    x, y, _ = data(COUNT, 0.4).tensors
    return Table.from_dict({"x": x.tolist(), "y": y.tolist(), "id": list(range(COUNT))})


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, k: int) -> Any:
        x, y, _ = data(COUNT, 0.4)[k]
        return {"x": x, "y": y, "id": k}


class Stream(IterableDataset[Any]):
    """Rows of which nobody knows how many will come."""

    def __iter__(self) -> Iterator[Any]:
        return (Rows()[k] for k in range(COUNT))


class Buffered:
    """Fills the same memory for every batch, and has no length."""

    def __iter__(self) -> Iterator[Any]:
        held: dict[str, Tensor] = {}
        for batch in DataLoader(Rows(), batch_size=SIZE):
            held = held or {name: part.clone() for name, part in batch.items()}
            for name, part in batch.items():
                held[name].copy_(part)
            yield held


def shuffled(**options: Any) -> DataLoader[Any]:
    order = torch.Generator().manual_seed(7)
    return DataLoader(Rows(), batch_size=SIZE, shuffle=True, generator=order, **options)


def streamed() -> Any:
    return table().to_iterable_dataset(num_shards=2).with_format("torch")


LOADERS: dict[str, Any] = {
    "shuffled": shuffled,
    "workers": lambda: shuffled(num_workers=2),
    "workers that stay": lambda: shuffled(num_workers=2, persistent_workers=True),
    "workers far ahead": lambda: shuffled(num_workers=2, prefetch_factor=6),
    "pinned": lambda: shuffled(pin_memory=True),
    "pinned workers": lambda: shuffled(num_workers=1, pin_memory=True),
    "stream": lambda: DataLoader(Stream(), batch_size=SIZE),
    "buffered": Buffered,
    "datasets": lambda: DataLoader(
        table().with_format("torch"),
        batch_size=SIZE,
        shuffle=True,
        generator=torch.Generator().manual_seed(7),
    ),
    "no generator": lambda: DataLoader(Rows(), batch_size=SIZE, shuffle=True),
    "datasets, streamed": lambda: DataLoader(streamed(), batch_size=SIZE),
    "datasets, streamed by workers": lambda: DataLoader(streamed(), batch_size=SIZE, num_workers=2),
    "datasets, batches themselves": lambda: streamed().batch(SIZE),
    "a generator": lambda: (batch for batch in DataLoader(Rows(), batch_size=SIZE)),
}
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


def losses(model: Any, batch: Any) -> Tensor:
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    return nn.functional.cross_entropy(model(x), y, reduction="none")


class Loop:
    def __init__(self, *epochs: Any, **options: Any) -> None:
        """epochs: a loader for each, or one for all."""
        self.model = net(dropout=0.0)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02)
        settings = {"horizon": 4, "rounds": 1, "keep": 0.5, "row": "id"} | options
        self.loader = LookAheadLoader(
            epochs[0], self.model, self.optimizer, losses, target(), **settings
        )
        self.epochs = [*epochs] if len(epochs) == EPOCHS else [*epochs] * EPOCHS
        self.epoch = 0
        self.rows: list[list[int]] = []

    def run(self, stop: int | None = None) -> None:
        for epoch in range(self.epoch, len(self.epochs)):
            self.epoch = epoch
            for batch in self.loader.stream(self.epochs[epoch]):
                self.optimizer.zero_grad()
                losses(self.model, batch).mean().backward()
                self.optimizer.step()
                self.rows.append(batch["id"].tolist())
                if len(self.rows) == stop:
                    return

    def resumed(self, *epochs: Any) -> "Loop":
        """Another process's, from the state that this one is in."""
        file = io.BytesIO()
        torch.save(self.loader.state_dict(), file)
        again = Loop(*epochs)
        again.model.load_state_dict(self.model.state_dict())
        again.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        again.loader.load_state_dict(
            torch.load(io.BytesIO(file.getvalue()), weights_only=True, map_location="cpu")
        )
        again.epoch, again.rows = self.epoch, [*self.rows]
        return again

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def epochs_of(kind: str) -> list[Any]:
    """One loader for all epochs; of what can be gone through once, one for each."""
    return [LOADERS[kind]() for _ in range(EPOCHS if kind == "a generator" else 1)]


@pytest.mark.parametrize("kind", LOADERS)
def test_any_loader_gives_what_its_batches_in_a_list_give(kind: str) -> None:
    loaders = epochs_of(kind)
    torch.manual_seed(3)
    lists = [[*map(copy.deepcopy, loaders[k % len(loaders)])] for k in range(EPOCHS)]
    ends = []
    for epochs in (epochs_of(kind), lists):
        loop = Loop(*epochs)
        torch.manual_seed(3)
        loop.run()
        ends.append((loop.rows, loop.weights()))
    assert ends[0][0] == ends[1][0]
    assert torch.equal(ends[0][1], ends[1][1])
    assert sum(map(len, ends[0][0])) == EPOCHS * COUNT // 2


@pytest.mark.parametrize("stop", [2, 4, 5, 6, 9, 12])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_loop_goes_on_where_it_was_in_any_loader(kind: str, stop: int) -> None:
    torch.manual_seed(3)
    whole = Loop(*epochs_of(kind))
    whole.run(stop)
    numbers = torch.get_rng_state()
    again = whole.resumed(*epochs_of(kind))
    torch.set_rng_state(numbers)
    again.run()
    torch.manual_seed(3)
    never_stopped = Loop(*epochs_of(kind))
    never_stopped.run()
    assert again.rows == never_stopped.rows
    assert torch.equal(again.weights(), never_stopped.weights())


def test_a_loader_without_a_length_says_so() -> None:
    for kind in ("stream", "datasets, streamed", "buffered"):
        with pytest.raises(TypeError, match="has no len"):
            len(Loop(LOADERS[kind]()).loader)


def test_a_long_window_of_what_workers_share_does_not_run_out_of_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
    try:
        loader = DataLoader(Rows(), batch_size=2, num_workers=1)
        loop = Loop(loader, horizon=48)
        loop.run()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(loop.rows) == EPOCHS * COUNT // 2


def test_a_loader_that_ends_before_what_was_handed_out_is_told() -> None:
    loop = Loop(shuffled())
    loop.run(stop=4)
    short = Loop(LOADERS["stream"]())
    short.loader.load_state_dict(loop.loader.state_dict() | {"rest": None, "report": None})
    fewer = torch.utils.data.Subset(Rows(), range(40))
    order = torch.Generator()
    short.epochs = [DataLoader(fewer, batch_size=SIZE, shuffle=True, generator=order)]
    with pytest.raises(DataError, match="the loader ends after 3 batches"):
        short.run()


def test_content_is_told_by_values_kinds_and_shapes() -> None:
    batches: list[Any] = [
        {"x": torch.arange(4)},
        {"x": torch.arange(4).float()},
        {"x": torch.arange(4)[:, None]},
        {"x": torch.arange(4).bfloat16()},
        {"x": torch.arange(4), "t": ["a", "b", "c", "d"]},
        {"x": torch.arange(4), "t": ["a", "b", "c", "e"]},
        {"x": torch.arange(4), "t": ["ab", "", "c", "d"]},
        {"x": torch.tensor(3)},
    ]
    digests = [content_of([batch]) for batch in batches]
    assert len({*digests}) == len(digests)
    assert digests == [content_of([copy.deepcopy(batch)]) for batch in batches]
    assert content_of([{"x": torch.arange(8)[::2] // 2}]) == digests[0]
