"""Is looking ahead worth it? Horizons against each other at equal time, on the league's data.

Every horizon scores for the same processor time, from the run's beginning: as long as the slowest
of them takes for two epochs, so that cheaper ones see more of the run; and every horizon scores
the whole run, whatever that takes. One round, nothing dropped on the way, the target in halves as
in the product. What is kept, as many rows as are right (nine in ten where none is wrong), is
retrained on from another start, stopped by the validation loss, at the same learning rate. Scores
are the look-ahead's alone (`combined` without further evidence), or with the losses of training on
everything, as the product has them.

    python examples/benchmarks/league/horizons.py --data DIR --out DIR2 [--splits 10] [SETTING ...]

DIR as for `league.py`. What is in DIR2 already is not done again; the table is made of all of it.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from fields import SETTINGS, Setting
from league import command, curve, interval, stopped

from curate.pipeline.job import Job, prepare
from curate.pipeline.retraining import Retraining
from curate.pipeline.score import combined, cut, selector_for
from curate.recipe import check_recipe
from curate.selection.budget import Budget
from curate.selection.policies import Halves
from curate.selection.ranking import auroc

HORIZONS = (1, 2, 4, 8, 16, "epoch", "full")
RATES = (1 / 3, 1, 3)
"""Learning rates, times the setting's own."""
EPOCHS, TIMED = 2, 24
"""What the slowest horizon scores; steps that a horizon's pace is measured on, at least."""


def score(job: Job, steps: int) -> tuple[Halves, float]:
    """Influences of the first steps on halves of the target, and seconds taken."""
    selector, state, planned = selector_for(job, "look_ahead", halved=True)
    begin = time.process_time()
    found = selector.run(state, planned[:steps])
    assert found.halves is not None
    return found.halves, time.process_time() - begin


def one_rate(setting: Setting, split: int, factor: float) -> list[dict[str, Any]]:
    """A line per horizon and way to score."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = setting.written(Path(folder))
        training = setting.recipe["training"]
        optimizer = training["optimizer"] | {"lr": training["optimizer"]["lr"] * factor}
        recipe["training"] = training | {"optimizer": optimizer, "seed": split}
        job, jobs = prepare(check_recipe(recipe), torch.device("cpu")), {}
        for k in HORIZONS:
            total = -(-setting.tables["train"].height // training["batch_size"])
            horizon = total if k == "epoch" else k
            selection = {"horizon": horizon, "epochs": training["epochs"], "probing": 0}
            checked = check_recipe(recipe | {"selection": selection})
            jobs[k] = replace(job, recipe=checked)
        broken = setting.tables["train"]["broken"].to_numpy()
        total = job.total_steps()
        epoch = total // training["epochs"]
        task, _, _ = job.start(split + 1)
        base = stopped(curve(job, task, np.arange(len(broken)), total))["test"]
        plain = Retraining(job, lambda: None).plain()
        keep = Budget(fraction=1 - broken.mean() if broken.any() else 0.9)
        timed = {}
        for k, own in jobs.items():
            ahead = own.recipe.selection.horizon
            ran = min(total, max(TIMED, epoch if ahead == "full" else ahead))
            timed[k] = score(own, ran)[1] / ran
        budget = EPOCHS * epoch * max(timed.values())
        lines = list[dict[str, Any]]()
        for k, own in jobs.items():
            lengths = {"equal": min(total, round(budget / timed[k])), "whole": total}
            for name, steps in lengths.items():
                if name == "whole" and steps == lengths["equal"]:
                    lines += [line | {"time": "whole"} for line in lines[-2:]]
                    continue
                halves, seconds = score(own, steps)
                for way, beside in (("alone", None), ("with losses", plain)):
                    values = combined(job, halves, beside).values
                    kept = np.flatnonzero(cut(job, values, keep).kept)
                    test = stopped(curve(job, task, kept, total))["test"]
                    lines.append(
                        {
                            "horizon": k,
                            "time": name,
                            "way": way,
                            "factor": factor,
                            "steps": steps,
                            "seconds": seconds,
                            "test": test,
                            "gain": base - test,
                            "auroc": auroc(-values, broken) if broken.any() else None,
                        }
                    )
        return lines


def one_split(setting: Setting, split: int) -> dict[str, Any]:
    """Lines of all learning rates, and seconds taken."""
    begin = time.perf_counter()
    lines = [line | {"split": split} for rate in RATES for line in one_rate(setting, split, rate)]
    return {"lines": lines, "seconds": time.perf_counter() - begin}


def tables(found: dict[str, list[dict[str, Any]]]) -> str:
    """Every setting's figures, in Markdown."""
    return "\n".join(
        table(name, [line for own in splits for line in own["lines"]])
        for name, splits in found.items()
        if splits
    )


def table(name: str, lines: list[dict[str, Any]]) -> str:
    """Gains over training on everything at the same learning rate, beside those of K = 1."""
    splits = {line["split"] for line in lines}
    text = [f"### {name}: {len(splits)} splits", ""]
    for lengths in ("equal", "whole"):
        own = [line for line in lines if line["time"] == lengths]
        text += [
            f"{lengths.capitalize()} time. The first line: K = 1's gain in test loss over "
            "everything; the others: what K gains beside that, mean and 95 % interval over splits.",
            "",
            "| K | steps | seconds | alone, lr / 3 | alone, lr | alone, 3 lr "
            "| with losses, lr / 3 | with losses, lr | with losses, 3 lr |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for k in HORIZONS:
            here = [line for line in own if line["horizon"] == k]
            cells = []
            for way in ("alone", "with losses"):
                for factor in RATES:
                    found, ones = (_gains(own, n, way, factor) for n in (k, 1))
                    gains = [found[s] - (0 if k == 1 else ones[s]) for s in found]
                    cells.append("{:+.3f} ± {:.3f}".format(*interval(gains)))
            text.append(
                f"| {k} | {mean(line['steps'] for line in here):.0f} | "
                f"{mean(line['seconds'] for line in here):.1f} | {' | '.join(cells)} |"
            )
        text.append("")
    return "\n".join(text)


def _gains(lines: list[dict[str, Any]], horizon: Any, way: str, factor: float) -> dict[int, float]:
    """By split."""
    asked = (horizon, way, factor)
    return {
        line["split"]: line["gain"]
        for line in lines
        if (line["horizon"], line["way"], line["factor"]) == asked
    }


if __name__ == "__main__":
    sys.exit(
        command(
            "Is looking ahead worth it?",
            SETTINGS,
            ["digits, 20 % wrong", "TREC, 20 % wrong"],
            one_split,
            lambda found: f"{found['seconds']:.0f} s",
            tables,
        )
    )
