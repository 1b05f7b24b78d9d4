"""The truth for the tuner: a full selection run of every pair of horizon and learning rate.

python examples/benchmarks/tuning/grid.py --data DIR --out grid.jsonl
"""

import argparse
import json
import time
from pathlib import Path

import torch
from settings import SETTINGS, job

from curate.progress import Phases
from curate.tuning.bench import set_up
from curate.tuning.plan import Rung, make_plan


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    done = set()
    if arguments.out.exists():
        for line in arguments.out.open():
            one = json.loads(line)
            done.add(
                (one["data"], one["model"], one["noise"], one["seed"], one["horizon"], one["lr"])
            )
    for (data, model, noise), seed in [(s, seed) for seed in arguments.seeds for s in SETTINGS]:
        if arguments.settings and f"{data}-{model}-{noise:g}" not in arguments.settings:
            continue
        own = job(data, model, noise, seed, arguments.data)
        rows = sum(len(t.examples) for t in own.data.targets) * (1 - own.recipe.tune.validation)
        plan = make_plan(own.recipe, own.total_steps(), rows / own.recipe.training.batch_size)
        bench = set_up(own, plan)
        for lr in plan.learning_rates:
            if all((data, model, noise, seed, k, lr) in done for k in plan.horizons):
                continue
            begin = time.process_time()
            flown = bench.fly(lr, lambda: None)
            pilot = time.process_time() - begin
            for view in flown.views:
                k = view["horizon"]
                if (data, model, noise, seed, k, lr) in done:
                    continue
                from curate.tuning.plan import Pair

                pair = Pair(k, lr)
                begin = time.process_time()
                _, one, _ = bench.run(pair, Rung(1, 1), Phases())
                middle = time.process_time()
                chosen, values, reason = bench.run(pair, plan.rungs[-1], Phases())
                seconds = time.process_time() - middle
                test = (
                    None if values is None else bench.test(pair, chosen.choice.kept, lambda: None)
                )
                line = {
                    "data": data,
                    "model": model,
                    "noise": noise,
                    "seed": seed,
                    "horizon": k,
                    "lr": lr,
                    "everything": flown.everything,
                    "view": view,
                    "one_round": one,
                    "values": values,
                    "reason": reason,
                    "test": test,
                    "seconds": seconds,
                    "one_round_seconds": middle - begin,
                    "pilot_seconds": pilot,
                }
                with arguments.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            print(data, model, noise, seed, lr, flush=True)


if __name__ == "__main__":
    main()
