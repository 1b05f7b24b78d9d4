"""The truth for the tuner: a selection run of every pair of horizon and learning rate.

Every pair selects with the part of the validation set that scores see, is retrained from
scratch with 3 seeds on what it keeps, and judged on the other part and on the test set: what
`curate tune` does with a pair, but for all of them, and once more in one round and with one
seed, for a race that halves the field that way. A line of JSON per pair goes to --out as it
ends; pairs found there are not done again.

    python examples/benchmarks/tuning/grid.py --data DIR --out grid.jsonl

DIR holds the Parquet files that `settings.py` describes. About an hour on one core.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from settings import SETTINGS, job

from curate.runtime.progress import Phases
from curate.tuning.grid import Pair
from curate.tuning.trials import Trials, set_up


def in_one_round(bench: Trials) -> Trials:
    """The same with one round of selection and one retraining."""
    recipe = bench.job.recipe
    selection = recipe.selection.model_copy(update={"rounds": 1})
    tune = bench.grid.tune.model_copy(update={"seeds": bench.grid.tune.seeds[:1]})
    return Trials(
        replace(bench.job, recipe=recipe.model_copy(update={"selection": selection})),
        bench.judging,
        replace(bench.grid, shape=replace(bench.grid.shape, rounds=1), tune=tune),
    )


def measure(bench: Trials, pair: Pair) -> dict[str, Any]:
    """A run of a pair."""
    begin = time.process_time()
    chosen, values = bench.run(pair, Phases())
    seconds = time.process_time() - begin
    test = bench.test(pair, chosen.choice.kept, lambda: None)
    _, one_round = in_one_round(bench).run(pair, Phases())
    return {"values": values, "one_round": one_round, "test": test, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description="Every pair of horizon and learning rate.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ("data", "model", "noise", "seed", "horizon", "lr")
    known = [json.loads(line) for line in arguments.out.open()] if arguments.out.exists() else []
    done = {tuple(line[name] for name in names) for line in known}
    for setting, seed in [(setting, seed) for seed in arguments.seeds for setting in SETTINGS]:
        bench = set_up(job(*setting, seed, arguments.data))
        for pair in bench.grid.pairs:
            where = (*setting, seed, *pair)
            if where in done:
                continue
            line = dict(zip(names, where, strict=True)) | measure(bench, pair)
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
        print(*setting, seed, flush=True)


if __name__ == "__main__":
    main()
