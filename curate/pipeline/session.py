"""`curate.select`: from data and a model in memory to what is kept, in Python and in notebooks."""

import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from torch import nn

from curate.datasets import PREFIX, as_dataset, handing
from curate.errors import ModelError, OptimizerError, RecipeError
from curate.output.closing import closing_html, closing_lines
from curate.output.verdict import worth_line
from curate.pipeline.select import run_select
from curate.recipe import check_recipe
from curate.recipe.optimizers import KINDS
from curate.rules import RULES
from curate.rules.from_torch import refuse_unmodeled, rule_of, unwrap
from curate.runtime.progress import Phases

SECTIONS = ("columns", "data", "target", "training", "selection", "score", "evaluation", "tune")
OPTIONS = ("device", "overwrite", "resume", "phases", "say", "ranks", "trackers")
"""Settings that are for `run_select`; all others are sections of a recipe."""


@dataclass(frozen=True, repr=False)
class Selected:
    """What `select` kept, and what that is worth.

    out: the directory, as `curate select` writes it. summary: as its `--json` prints it.
    """

    out: Path
    summary: dict[str, Any]

    @cached_property
    def dataset(self) -> Dataset:
        """The rows that were kept, with all their columns."""
        found = load_from_disk(str(self.out))
        assert not isinstance(found, Dataset)
        return found["train"]

    @cached_property
    def scores(self) -> pl.DataFrame:
        """A line per candidate in their order: influence (positive helps), score, rank, kept."""
        return pl.read_parquet(self.out / "scores.parquet").sort("row")

    @property
    def verdict(self) -> str:
        """Whether choosing pays, and how much, in one sentence."""
        worth = self.summary.get("worth")
        return "what choosing is worth was not measured" if worth is None else worth_line(worth)

    def __repr__(self) -> str:
        kept, of = self.summary["kept"], self.summary["candidates"]
        return f"Selected({kept:,} of {of:,} rows; {self.verdict})"

    def __str__(self) -> str:
        return closing_lines(self.summary)

    def _repr_html_(self) -> str:
        return closing_html(self.summary)


def select(
    train: Any,
    *,
    validation: Any,
    columns: Mapping[str, Any] | None = None,
    model: Any = None,
    optimizer: Any = None,
    out: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Selected:
    """Score rows in memory, keep those worth training on, and say what that is worth.

    The same code as `curate select`: every key of a recipe is there.

        kept = curate.select(
            train,
            validation=checked,
            columns={"features": ["x*"], "label": "label"},
            model=nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 4)),
            optimizer={"kind": "adamw", "lr": 3e-3},
            training={"epochs": 4, "batch_size": 32},
        )
        kept.dataset, kept.scores, kept.verdict

    Args:
        train: the candidates: a `datasets.Dataset`, a frame of Polars or pandas, an Arrow table,
            a Dataset of torch with a length; or, as in a recipe, a path.
        validation: the target, likewise; a share of train, `{"fraction": 0.1}`; or several
            targets by name.
        columns: which columns are what, as `data.columns` of a recipe. Of pairs in a Dataset of
            torch they are `features` and `label`.
        model: a module, which is copied and always started from with the weights that it has; a
            function that returns one, which is called for every training; the directory or name
            of a model of transformers; or a section of a recipe. A small perceptron if None.
        optimizer: a section of a recipe; or an optimizer of torch for parameters of `model`, of
            which kind and options are read.
        out: a directory to write, and to keep. If None it goes with the object that is returned.
        settings: sections of a recipe (`training`, `selection`, `data`, `score`, ...); `objective`
            and `loss` of `target` may be functions (model, batch) -> losses, shape (n,); `test` is
            data as `train` is.
            And options of `run_select`: `device`, `overwrite`, `resume`.

    Raises:
        UserError: something in the data, the model or a setting is wrong.
    """
    options = {name: settings.pop(name) for name in OPTIONS if name in settings}
    options.setdefault("phases", Phases(bars=sys.stderr.isatty()))
    session = _Session()
    recipe = session.recipe(train, validation, columns, settings)
    if model is not None:
        recipe["model"] = session.model(model)
    if optimizer is not None:
        training = recipe.get("training") or {}
        section = optimizer
        if not isinstance(optimizer, Mapping):
            section = read_optimizer(optimizer, model)
            if "schedule" not in training and _scheduled(optimizer):
                raise OptimizerError(
                    "the optimizer has a schedule of its learning rate, which cannot be read; say "
                    'it: training={"schedule": {"kind": "linear", "warmup_steps": 10}}.'
                )
        recipe["training"] = {**training, "optimizer": section}
    folder = Path(tempfile.mkdtemp(prefix="curate-")) if out is None else None
    where = Path(out) if out is not None else Path(str(folder)) / "selected"
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with handing(session.objects):
            found = Selected(where, run_select(check_recipe(recipe), where, **options))
    except BaseException:
        _remove(folder)
        raise
    finally:
        if not bars:
            datasets.enable_progress_bars()
    weakref.finalize(found, _remove, folder)
    return found


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Session:
    """What is handed over in memory, by the name that stands for it in the recipe."""

    objects: dict[str, Any] = field(default_factory=dict)

    def recipe(
        self,
        train: Any,
        validation: Any,
        columns: Mapping[str, Any] | None,
        settings: Mapping[str, Any],
    ) -> dict[str, Any]:
        """The recipe without its model."""
        for name, value in {"columns": columns, **settings}.items():
            if name in SECTIONS and not (value is None or isinstance(value, Mapping)):
                raise RecipeError(f"{name}: must be a mapping of keys but got {value!r}.")
        data = {"columns": columns or {"features": ["features"]}, **(settings.get("data") or {})}
        data["train"] = self._source(train, "train")
        if isinstance(validation, Mapping) and not {*validation} & {"fraction", "path"}:
            data["validation"] = {
                name: self._source(part, f"validation/{name}") for name, part in validation.items()
            }
        else:
            data["validation"] = self._source(validation, "validation")
        if "relabelled" in data:
            data["relabelled"] = self._source(data["relabelled"], "relabelled")
        if "test" in settings:
            data["test"] = self._source(settings["test"], "test")
        recipe = {name: value for name, value in settings.items() if name != "test"}
        if callable(objective := settings.get("objective")):
            recipe["objective"] = self._hand(objective, "objective")
        if callable((target := settings.get("target") or {}).get("loss")):
            recipe["target"] = {**target, "loss": self._hand(target["loss"], "goal")}
        return recipe | {"data": data}

    def model(self, model: Any) -> Any:
        """The section of a model: one that is given, of a name, or of an object."""
        if isinstance(model, Mapping):
            return model
        if isinstance(model, str | os.PathLike):
            return {"pretrained": os.fspath(model)}
        if not callable(model):
            raise ModelError(
                f"model: is a {type(model).__name__}; hand over a module, a function that returns "
                "one, the name of a model of transformers, or a section of a recipe."
            )
        return {"factory": self._hand(model, "model")}

    def _source(self, data: Any, name: str) -> Any:
        if isinstance(data, str | os.PathLike):
            return os.fspath(data)
        if isinstance(data, Mapping) and not isinstance(data, DatasetDict):
            return data
        return self._hand(as_dataset(data, name), name)

    def _hand(self, found: Any, name: str) -> str:
        self.objects[name] = found
        return PREFIX + name


def _scheduled(optimizer: Any) -> bool:
    """Whether a scheduler of torch has set its learning rates."""
    return any("initial_lr" in group for group in unwrap(optimizer).param_groups)


def read_optimizer(optimizer: Any, model: Any) -> dict[str, Any]:
    """The section of a recipe that says what an optimizer of torch does, group by group.

    Raises:
        OptimizerError: it is not modeled, or has parameters that are none of the model's.
    """
    optimizer = unwrap(optimizer)
    refuse_unmodeled(optimizer)
    kinds = {rule: name for name, rule in RULES.items()}
    names = dict[int, str]()
    if isinstance(model, nn.Module):
        names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if missing := [name for number, name in names.items() if number not in held]:
            raise OptimizerError(
                f"the optimizer does not hold {missing[0]}, which the model trains "
                f"({len(missing)} of {len(names)} parameters); add it, or freeze it "
                "(requires_grad_(False))."
            )
    sections = []
    for group in optimizer.param_groups:
        own = kinds[rule_of(optimizer, group)]
        keys = KINDS[own].model_fields.keys() - {"kind", "groups"}
        rate = group.get("initial_lr", group["lr"])
        values = {key: _plain(group[key]) for key in keys if key in group} | {"lr": float(rate)}
        sections.append({"kind": own, **values})
    if len(sections) == 1:
        return sections[0]
    for section, group in zip(sections, optimizer.param_groups, strict=True):
        section["match"] = [names[id(p)] for p in group["params"] if id(p) in names]
        if len(section["match"]) < len(group["params"]):
            raise OptimizerError(
                "the optimizer has several groups, and parameters that are none of the model's; "
                "hand over the module whose parameters they are."
            )
    first = {key: value for key, value in sections[0].items() if key != "match"}
    return first | {"groups": sections[1:]}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    return list(value) if isinstance(value, tuple) else value
