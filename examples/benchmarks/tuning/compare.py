"""Does the tuner find the best pair, and for how much? Against the whole grid, and simpler ways.

Tunes every setting of `settings.py` with every seed, then looks up in what `grid.py` found:

    exhaustive       all pairs run, the best by the same judging part of the validation set
    curate tune      the pair it ends with
    lr, then K       the learning rate that trains best on everything, then every horizon at it
    K alone          every horizon at the recipe's learning rate
    lr alone         every learning rate at the recipe's horizon
    halving          all pairs in one round with one retraining, the best 3 of them in full

A test loss is divided by the lowest of the grid. Cost: passes over those of the grid.

    python examples/benchmarks/tuning/compare.py --data DIR --grid grid.jsonl --out DIR2
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

import polars as pl
import torch
from grid import in_one_round
from settings import SETTINGS, job

from curate.runtime.progress import Phases
from curate.tuning import Pair, Tuned, tune_job
from curate.tuning.trials import Trials, set_up

LR, K = 3e-3, 16  # of the recipes
WAYS = ("exhaustive", "curate tune", "lr, then K", "K alone", "lr alone", "halving")


def chosen_by(
    tuned: Tuned, bench: Trials, value: dict[Pair, float], short: dict[Pair, float]
) -> dict[str, tuple[Pair, float]]:
    """What each way ends with, and its passes."""
    plan = tuned.grid

    def best(pairs: Iterable[Pair]) -> Pair:
        return min(pairs, key=lambda pair: value[pair])

    def price(pairs: Iterable[Pair]) -> float:
        return sum(plan.run_passes(pair.horizon) for pair in pairs)

    diverged = float("inf")
    everything = {lr: diverged if v is None else v for lr, v in tuned.everything.items()}
    rate = min(everything, key=lambda lr: everything[lr])
    along_k = [pair for pair in plan.pairs if pair.learning_rate == rate]
    own_k = [pair for pair in plan.pairs if pair.learning_rate == LR]
    own_lr = [pair for pair in plan.pairs if pair.horizon == K]
    finals = sorted(short, key=lambda pair: short[pair])[:3]
    halving = sum(in_one_round(bench).grid.run_passes(pair.horizon) for pair in plan.pairs)
    return {
        "exhaustive": (best(plan.pairs), plan.grid_passes()),
        "curate tune": (tuned.pair, tuned.passes),
        "lr, then K": (best(along_k), plan.steps * len(everything) + price(along_k)),
        "K alone": (best(own_k), price(own_k)),
        "lr alone": (best(own_lr), price(own_lr)),
        "halving": (best(finals), halving + price(finals)),
    }


def compare(
    setting: tuple[str, str, float], seed: int, folder: Path, lines: list[dict[str, Any]], out: Path
) -> dict[str, Any]:
    """One setting with one seed."""
    name = f"{setting[0]}-{setting[1]}-{setting[2]:g}-{seed}"
    own_job = job(*setting, seed, folder)
    tuned = tune_job(own_job, out / name, None, Phases(), lambda _: None)
    bench = set_up(own_job)
    own = {Pair(line["horizon"], line["lr"]): line for line in lines}

    def column(key: str, of: Callable[[Any], float]) -> dict[Pair, float]:
        missing = float("inf")
        return {pair: missing if own[pair][key] is None else of(own[pair][key]) for pair in own}

    test = column("test", lambda runs: mean(run["loss"] for run in runs))
    value = column("values", mean)
    for line in tuned.table.filter(pl.col("outcome").is_in(["best", "beaten"])).to_dicts():
        pair = Pair(line["horizon"], line["learning_rate"])
        if abs(line["value"] - value[pair]) > 1e-3 * value[pair]:
            raise SystemExit(f"{name}, {pair}: the grid is of another version or machine")
    ways = chosen_by(tuned, bench, value, column("one_round", mean))
    best = min(test, key=lambda pair: test[pair])
    dropped = tuned.table.filter(pl.col("outcome") == "dropped")
    pairs = [Pair(*pair) for pair in dropped.select("horizon", "learning_rate").rows()]
    grid = tuned.grid.grid_passes()
    return {
        "setting": setting,
        "seed": seed,
        "best": (best, test[best]),
        "ways": {n: (p, test[p] / test[best], cost / grid) for n, (p, cost) in ways.items()},
        "dropped": pairs,
        "winner_dropped": best in pairs,
        "chosen_dropped": ways["exhaustive"][0] in pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The tuner against the whole grid.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    grid = [json.loads(line) for line in arguments.grid.open()]
    found = []
    print(
        "setting            seed  best of the grid           " + "".join(f"{w:>24s}" for w in WAYS)
    )
    for setting in SETTINGS:
        for seed in arguments.seeds:
            lines = [
                line
                for line in grid
                if (line["data"], line["model"], line["noise"], line["seed"]) == (*setting, seed)
            ]
            one = compare(setting, seed, arguments.data, lines, arguments.out)
            found.append(one)
            (k, lr), loss = one["best"]
            cells = (
                f"{ratio:10.2f} ({pair.horizon:3d}, {pair.learning_rate:g})".rjust(24)
                for pair, ratio, _ in (one["ways"][way] for way in WAYS)
            )
            text = f"{loss:.3f} (K {k}, lr {lr:g})"
            print(
                f"{setting[0]} {setting[1]} {setting[2]:<8g} {seed:4d}  {text:27s}",
                *cells,
                sep="",
                flush=True,
            )
    for title, of in (("median", median), ("mean", mean), ("highest", max)):
        each = (of(one["ways"][way][1] for one in found) for way in WAYS)
        print(f"{title:52s}" + "".join(f"{value:24.3f}" for value in each))
    cost = (mean(one["ways"][way][2] for one in found) for way in WAYS)
    print(f"{'cost, share of the grid, mean':52s}" + "".join(f"{value:24.1%}" for value in cost))
    print(f"dearest tuning: {max(one['ways']['curate tune'][2] for one in found):.1%} of the grid")
    dropped = [pair for one in found for pair in one["dropped"]]
    print(
        f"dropped by the pilots: {len(dropped)} of {30 * len(found)} pairs; the pair of the lowest "
        f"test loss was among them in {sum(one['winner_dropped'] for one in found)} of "
        f"{len(found)}, the one an exhaustive search takes in "
        f"{sum(one['chosen_dropped'] for one in found)}"
    )
    counts: dict[Pair, int] = {}
    for pair in dropped:
        counts[pair] = counts.get(pair, 0) + 1
    print("which:", ", ".join(f"({pair}) {n} times" for pair, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
