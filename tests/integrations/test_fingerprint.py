"""A log knows which dataset its rows are of, where the loop read one that says so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from curate import LookAheadLoader, write_kept
from curate.errors import DataError
from curate.integrations.fingerprint import SAMPLE, require_same, sampled
from tests.integrations.loop import data, net, target

COUNT = 200


def rows(seed: int = 0, **more: Any) -> Dataset:
    x, y, _ = data(COUNT, 0.4, seed).tensors
    columns = {"x": x.tolist(), "label": y.tolist(), "id": list(range(COUNT))} | more
    return Dataset.from_dict(columns)


def losses(model: Any, batch: Any) -> Tensor:
    x, y = (batch["x"], batch["label"]) if isinstance(batch, dict) else batch
    return nn.functional.cross_entropy(model(x), y, reduction="none")


def logged(folder: Path, dataset: Any, row: Any = "id") -> Path:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    chosen = LookAheadLoader(loader, model, optimizer, losses, target(), row=row, log=folder)
    for batch in chosen:
        optimizer.zero_grad()
        losses(model, batch).mean().backward()
        optimizer.step()
    return folder


def check(out: Path) -> str:
    return str(json.loads((out / "provenance.json").read_text())["dataset_check"])


READ: dict[str, Any] = {
    "all": lambda whole: whole.with_format("torch"),
    "shuffled and fewer": lambda whole: whole.shuffle(1).select(range(90)).with_format("torch"),
    "with columns made of it": lambda whole: whole.map(
        lambda row: {"x": row["x"], "longer": [*row["x"], 1.0]}
    ).with_format("torch"),
    "a part": lambda whole: Subset(whole.with_format("torch"), range(3, 170)),
}


@pytest.mark.parametrize("how", READ)
def test_the_dataset_is_known_by_rows_of_it_and_another_of_its_length_is_refused(
    tmp_path: Path, how: str
) -> None:
    whole = rows(text=[f"row {k}" for k in range(COUNT)])
    log = logged(tmp_path / "log", READ[how](whole))
    write_kept(log, whole, tmp_path / "out")
    assert check(tmp_path / "out") == "same in label, text, x"
    sources = json.loads((tmp_path / "out" / "provenance.json").read_text())["sources"]
    assert len(sources["a dataset in memory"]["fingerprint"]) == 16
    whole.to_parquet(str(tmp_path / "whole.parquet"))
    write_kept(log, tmp_path / "whole.parquet", tmp_path / "again")
    for other in (rows(seed=1), whole.shuffle(2)):
        with pytest.raises(DataError, match=r"column (x|label|text) of the dataset does not hold"):
            write_kept(log, other, tmp_path / "other")
    with pytest.raises(DataError, match=r"has row|the loop's dataset has rows"):
        write_kept(log, whole.select(range(50)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_columns_that_only_one_of_them_has_are_not_compared(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", rows().with_format("torch"))
    write_kept(log, rows().rename_columns({"x": "inputs", "label": "y"}), tmp_path / "out")
    assert check(tmp_path / "out") == "row ids only"


def test_where_nothing_is_known_of_the_dataset_row_ids_are_all_that_is_checked(
    tmp_path: Path,
) -> None:
    log = logged(tmp_path / "log", rows().with_format("torch"), row=lambda batch: batch["id"])
    write_kept(log, rows(seed=1), tmp_path / "out")
    assert check(tmp_path / "out") == "row ids only"


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1000])
def test_first_and_last_rows_are_among_those_looked_at(count: int) -> None:
    facts = sampled(Dataset.from_dict({"id": list(range(count)), "x": [0.0] * count}), "id")
    assert facts is not None
    assert facts["rows"][0] == 0
    assert facts["rows"][-1] == count - 1
    assert len(facts["rows"]) == min(count, SAMPLE)


def test_what_does_not_name_its_rows_gives_nothing() -> None:
    assert sampled(rows(), None) is None
    assert sampled(rows(), "row") is None
    assert sampled(rows(id=["a"] * COUNT), "id") is None
    assert sampled(rows().select([]), "id") is None
    assert sampled(data(), "id") is None


def test_pictures_are_their_bytes_and_values_are_as_stored(tmp_path: Path) -> None:
    pictures = [np.full((4, 4, 3), k, dtype=np.uint8) for k in range(20)]
    features = Features({"image": Image(), "id": Value("int64")})
    table = Dataset.from_dict({"image": pictures, "id": range(20)}, features=features)
    facts = sampled(table.with_transform(lambda batch: {"id": batch["id"]}), "id")
    assert facts is not None
    table.to_parquet(str(tmp_path / "a.parquet"))
    again = Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path))
    assert require_same(facts, again, "log") == ["image"]
    with pytest.raises(DataError, match="column image"):
        require_same(facts, again.select([1, 0, *range(2, 20)]), "log")
