"""`curate.select` on data and models in memory, against the same run by a recipe."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import curate
from curate.errors import DataError, ModelError, OptimizerError, RecipeError
from curate.pipeline.session import read_optimizer

QUICK: dict[str, Any] = {
    "training": {"epochs": 2, "batch_size": 16},
    "selection": {"horizon": 2, "epochs": 1, "probing": 0},
    "device": "cpu",
}


def frame(count: int, seed: int, wrong: float = 0.0) -> pl.DataFrame:
    """Two clusters in four dimensions."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, count)
    x = random.normal(size=(count, 4)) + 2.0 * label[:, None]
    noisy = np.where(random.random(count) < wrong, 1 - label, label)
    return pl.DataFrame({f"x{k}": x[:, k] for k in range(4)} | {"label": noisy})


TRAIN, CHECKED = frame(96, 0, wrong=0.3), frame(48, 1)
COLUMNS = {"features": ["x*"], "label": "label"}


def test_corrected_labels_are_handed_over_as_rows_are() -> None:
    rows = np.flatnonzero(TRAIN["label"].to_numpy() != TRAIN["x0"].to_numpy().round().clip(0, 1))
    fixed = pl.DataFrame({"row": rows[:7], "label": 1 - TRAIN["label"].to_numpy()[rows[:7]]})
    found = curate.select(
        TRAIN,
        validation=CHECKED,
        columns=COLUMNS,
        data={"relabelled": fixed},
        **QUICK,
    )
    assert found.summary["relabelled"]["changed"] == 7
    assert "corrections: 7 of 7 labels in " in str(found)


def test_it_is_the_same_as_the_command(tmp_path: Path) -> None:
    TRAIN.write_parquet(tmp_path / "train.parquet")
    CHECKED.write_parquet(tmp_path / "checked.parquet")
    recipe = {
        "data": {
            "train": str(tmp_path / "train.parquet"),
            "validation": str(tmp_path / "checked.parquet"),
            "columns": COLUMNS,
        },
        "model": {"kind": "mlp", "hidden": [8]},
        "training": QUICK["training"] | {"optimizer": {"kind": "adamw", "lr": 1e-2}},
        "selection": QUICK["selection"],
    }
    curate.run_select(curate.check_recipe(recipe), tmp_path / "theirs", device="cpu")
    found = curate.select(
        TRAIN,
        validation=CHECKED,
        columns=COLUMNS,
        model={"kind": "mlp", "hidden": [8]},
        optimizer={"kind": "adamw", "lr": 1e-2},
        out=tmp_path / "ours",
        **QUICK,
    )
    expected = pl.read_parquet(tmp_path / "theirs" / "scores.parquet").sort("row")
    assert found.scores.equals(expected)
    kept = TRAIN.filter(expected["kept"])
    assert pl.DataFrame(found.dataset.data.table).equals(kept)
    assert found.verdict in str(found)
    assert str(found).endswith(f"wrote {tmp_path}/ours; to look at: {tmp_path}/ours/report.html")
    assert "<table>" in found._repr_html_()
    assert repr(found) == f"Selected({len(kept)} of 96 rows; {found.verdict})"


def test_a_module_is_started_from_as_it_is_and_left_so() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    before = copy.deepcopy(model.state_dict())

    def build() -> nn.Module:
        built = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        built.load_state_dict(before)
        return built

    scores = []
    for handed in (model, build):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.8, 0.9))
        found = curate.select(
            TRAIN, validation=CHECKED, columns=COLUMNS, model=handed, optimizer=optimizer, **QUICK
        )
        scores.append(found.scores["influence"])
        assert found.out.exists()
    assert scores[0].equals(scores[1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pairs_of_a_torch_dataset_and_a_loss_of_ones_own() -> None:
    def parts(table: pl.DataFrame) -> TensorDataset:
        return TensorDataset(
            torch.tensor(table.select("^x.$").to_numpy(), dtype=torch.float32),
            torch.tensor(table["label"].to_numpy()),
        )

    def losses(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(
            model(batch["features"]), batch["label"], reduction="none"
        )

    train, checked = parts(TRAIN), parts(CHECKED)
    model = nn.Linear(4, 2)  # own losses do not say how many outputs they need
    found = [
        curate.select(train, validation=checked, model=model, objective=objective, **QUICK)
        for objective in (losses, "classification")
    ]
    first, second = (own.scores["influence"].to_numpy() for own in found)
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_a_target_may_be_a_function_too() -> None:
    def undecided(model: nn.Module, batch: Any) -> Tensor:
        probabilities = model(batch["features"]).softmax(dim=1)
        return 1 - probabilities.square().sum(dim=1)

    found = curate.select(
        TRAIN, validation=CHECKED, columns=COLUMNS, target={"loss": undecided}, **QUICK
    )
    assert 0 < found.summary["worth"]["chosen"]["loss"] < 0.5
    assert "training loss" in found.summary["worth"]["chosen"]["metrics"]


def test_several_targets_and_a_share_of_train() -> None:
    both = curate.select(
        TRAIN, validation={"one": CHECKED, "other": frame(20, 2)}, columns=COLUMNS, **QUICK
    )
    assert {"influence/one", "influence/other"} <= {*both.scores.columns}
    share = curate.select(TRAIN, validation={"fraction": 0.25}, columns=COLUMNS, **QUICK)
    assert len(share.scores) == 72


def test_targets_may_be_called_as_other_things_are() -> None:
    found = [
        curate.select(TRAIN, validation={name: CHECKED}, columns=COLUMNS, **QUICK)
        for name in ("train", "model", "one")
    ]
    assert [len(own.scores) for own in found] == [96, 96, 96]
    assert found[0].scores["influence"].equals(found[2].scores["influence"])


def test_a_schedule_is_not_dropped() -> None:
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1)
    with pytest.raises(OptimizerError, match="has a schedule of its learning rate"):
        curate.select(
            TRAIN, validation=CHECKED, columns=COLUMNS, model=model, optimizer=optimizer, **QUICK
        )


def test_an_optimizer_is_read_group_by_group() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    groups = [
        {"params": [*model[0].parameters()], "weight_decay": 0.0},
        {"params": [*model[1].parameters()], "lr": 1e-1},
    ]
    optimizer = torch.optim.SGD(groups, lr=1e-2, momentum=0.9, weight_decay=1e-3)
    section = read_optimizer(optimizer, model)
    assert section == {
        "kind": "sgd",
        "lr": 1e-2,
        "momentum": 0.9,
        "dampening": 0,
        "nesterov": False,
        "weight_decay": 0.0,
        "groups": [section["groups"][0]],
    }
    assert section["groups"][0]["match"] == ["1.weight", "1.bias"]
    assert section["groups"][0]["lr"] == 1e-1
    for kind in (torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adafactor):
        own = read_optimizer(kind(model.parameters(), lr=1e-3), None)
        checked = curate.check_recipe(
            {
                "data": {"train": "a.csv", "validation": "b.csv", "columns": COLUMNS},
                "training": {"optimizer": own},
            }
        )
        assert checked.training.optimizer.lr == 1e-3
    more = torch.optim.SGD([*groups, {"params": [nn.Parameter(torch.ones(2))]}], lr=1e-2)
    with pytest.raises(OptimizerError, match="several groups, and parameters that are none"):
        read_optimizer(more, model)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    some = torch.optim.AdamW(model[0].parameters())
    with pytest.raises(OptimizerError, match=r"does not hold 1.weight, .*\(2 of 4 parameters\)"):
        read_optimizer(some, model)
    model[1].requires_grad_(False)
    assert read_optimizer(some, model)["kind"] == "adamw"
    with pytest.raises(OptimizerError, match=r"does not hold 0.weight"):
        read_optimizer(torch.optim.AdamW(nn.Linear(4, 8).parameters()), model)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"model": 3}, ModelError, "model: is a int; hand over a module"),
        ({"training": "x"}, RecipeError, "training: must be a mapping of keys but got 'x'"),
        ({"device": "tpu"}, ModelError, "device: must be auto, cpu or cuda but got 'tpu'"),
        ({"trainings": {}}, RecipeError, "trainings: unknown key; did you mean training"),
        ({"columns": {"features": ["z"]}}, DataError, "session:train: no column matches z"),
        ({"optimizer": torch.optim.LBFGS([torch.ones(1)])}, OptimizerError, "LBFGS is not modeled"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    settings: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        curate.select(TRAIN, **{"validation": CHECKED, "columns": COLUMNS} | QUICK | settings)
