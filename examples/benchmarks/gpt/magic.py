"""The same run by bergson's MAGIC, in an interpreter that has bergson and not curate.

    PYTHON magic.py train FOLDER     its trainer, no checkpoints on the way
    PYTHON magic.py score FOLDER     trained, the query's gradient taken, and backpropagated

Same weights, same batches, same AdamW as torch's default, bergson's own entry point
`run_magic`; what is timed is its training, its query gradient and its way back, without its
reading of data and writing of scores. It shuffles by seed, so rows are given to it
in the order that its shuffle makes that of the other ways. Its score of a sequence is the
derivative of the query's loss by the sequence's weight; saved is the negative, so that
positive helps. Prints a line of JSON.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bergson.config.config import DataConfig, LRScheduleConfig, QuerySetConfig, TrainingConfig
from bergson.magic import MagicConfig, cli, trainer
from datasets import Dataset
from meter import Meter, warm_up
from safetensors.torch import load_file, save_file

SEED = 0


def write(tokens: torch.Tensor, path: Path) -> str:
    Dataset.from_dict({"input_ids": tokens.tolist()}).save_to_disk(path)
    return str(path)


def timed(owner: Any, name: str, meter: Meter, label: str, results: dict[str, Any]) -> None:
    """Time a function of bergson's, and keep what it returned last."""
    original: Callable[..., Any] = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        meter.begin(label)
        results[label] = original(*args, **kwargs)
        meter.end()
        return results[label]

    setattr(owner, name, wrapper)


def run(
    what: str, folder: Path, save_mode: str, eps_root: float, precision: str, work: Path
) -> dict[str, Any]:
    meter = Meter()
    setting = json.loads((folder / "setting.json").read_text())
    tokens = load_file(folder / "tokens.safetensors")
    count = len(tokens["train"])
    order = torch.tensor(Dataset.from_dict({"k": [*range(count)]}).shuffle(seed=SEED)["k"])
    placed = torch.empty_like(tokens["train"])
    placed[order] = tokens["train"]
    shared = {
        "run_path": str(work / "run"),
        "model": str(folder),
        "precision": precision,
        "data": DataConfig(dataset=write(placed, work / "train")),
        "lr_schedule": LRScheduleConfig(
            lr=setting["lr"],
            lr_scheduler_type="constant_with_warmup",
            lr_start=setting["lr"] / setting["warmup"],
            warmup_steps=setting["warmup"] - 1,
        ),
        "batch_size": setting["batch"],
        "seed": SEED,
        "wandb_project": "",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "weight_decay": 0.01,
        "eps_root": eps_root,
        "save_mode": save_mode if what == "score" else "final",
    }
    results: dict[str, Any] = {}
    timed(trainer.Trainer, "train", meter, "train", results)
    if what == "train":
        cli.run_magic(TrainingConfig(**shared))
        return meter.found()
    timed(cli, "compute_query_gradients", meter, "query", results)
    timed(trainer.Trainer, "backward", meter, "back", results)
    query = QuerySetConfig(dataset=write(tokens["held"], work / "query"), aggregation="mean")
    cli.run_magic(MagicConfig(**shared, query=query))
    by_weight = results["back"].weight_grads.detach()[order].double()
    save_file({"fixed": -by_weight}, work / "scores.safetensors")
    found = meter.found() | {"target": results["query"][1]}
    return found | {"non_finite": int((~by_weight.isfinite()).sum())}


def main() -> None:
    parser = argparse.ArgumentParser(description="The run trained or scored by bergson.")
    parser.add_argument("what", choices=["train", "score"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--save-mode", default="sqrt")
    parser.add_argument("--eps-root", type=float, default=1e-17)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    found = run(
        arguments.what,
        arguments.folder.resolve(),
        arguments.save_mode,
        arguments.eps_root,
        arguments.precision,
        arguments.work,
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
