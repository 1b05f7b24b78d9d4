"""Does the error proxy know how wrong the scores are? Learning rate x horizon, smooth and kinked.

Digits, an MLP 64-16-16-10 with GELU and with ReLU, AdamW, batches of 64, in
float64. For each learning rate the run is cut into windows of K steps and
scored, with the linear and with the exact jump, and the proxy is asked for the
expected absolute error (`ErrorProxy` at its default share of the cost of `--rounds` rounds
of scoring, 4 being the default of a recipe). The truth is
what leaving out each of many candidates, drawn evenly and independently of the
proxy's probes, really does at the end of its window: trained again on the
others, in code that shares nothing with the probes but the forward step.

    python examples/benchmarks/error_proxy.py [--examples 200] [--seeds 0] [--rounds 4]
                                              [--plot FILE.png]

Needs scikit-learn and scipy (the extra `test`). About ten minutes on one core.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from leave_one_out import DTYPE, TRAIN, digits, plan
from scipy.stats import spearmanr

from curate.influence import ErrorProxy, Scoring, Target, score_window, target_gradients
from curate.models import BUILTIN_MODELS, Classification, FlatModel
from curate.rules import AdamW, State, initial_state
from curate.trajectory import Step, Task, record, replay

HORIZONS = (1, 2, 4, 8, 16, 32, 64)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
STEPS = 128
JUMPS = {"linear": None, "exact": 2**28}
SHARE = 0.2


def left_out(task: Task, window: list[Step], state: State, k: int, position: int) -> float:
    """The target loss at the window's end, trained without one candidate of step k."""
    others = torch.arange(len(window[k].rows)) != position
    rest = [window[k].keep(torch.nonzero(others).squeeze(1)), *window[k + 1 :]]
    final = replay(task, AdamW(), replay(task, AdamW(), state, window[:k]), rest)
    loss, _ = target_gradients(task.model, task.objective, [TARGET], final.theta)
    return float(loss[0])


def measure(
    task: Task, steps: list[Step], horizon: int, examples: int, rounds: int
) -> dict[str, Any]:
    """Predicted and true mean absolute error of both jumps, over the windows of a run."""
    state, random = initial_state(AdamW(), task.model.read()), np.random.default_rng(horizon)
    proxies = {jump: ErrorProxy(SHARE, exact=jump == "exact", rounds=rounds) for jump in JUMPS}
    places = np.sort(random.integers(0, sum(len(step.rows) for step in steps), examples))
    rows = len(TARGET.examples)
    ends = np.cumsum([len(step.rows) for step in steps])
    at = np.searchsorted(ends, places, side="right")
    errors: dict[str, list[float]] = {jump: [] for jump in JUMPS}
    signal: list[float] = []
    for first in range(0, len(steps), horizon):
        window, found = steps[first : first + horizon], {}
        for jump, memory in JUMPS.items():
            made = record(task, AdamW(), state, window, snapshots=horizon, gradients=horizon)
            probing = proxies[jump].plan(window, rows)
            found[jump] = score_window(
                task, AdamW(), made, [TARGET], scoring=Scoring(jump_bytes=memory), probing=probing
            )
            proxies[jump].enter(first, window, found[jump], rows)
        for place, k in zip(places, at - first, strict=True):
            if not 0 <= k < len(window):
                continue
            position = int(place - ends[first + k] + len(window[k].rows))
            actual = left_out(task, window, state, k, position)
            actual -= float(found["linear"].target_losses[0])
            signal.append(abs(actual))
            for jump, scores in found.items():
                errors[jump].append(abs(float(scores.influences[k][0, position]) - actual))
        state = made.final
    predicted = {
        jump: np.average([w.error for w in own.windows()], weights=[w.steps for w in own.windows()])
        for jump, own in proxies.items()
    }
    return {
        jump: (float(predicted[jump]), float(np.mean(errors[jump])), float(np.mean(signal)))
        for jump in JUMPS
    }


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Predicted against true error, a point per (network, learning rate, horizon)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), layout="constrained")
    for axes, jump in zip(figure.subplots(1, 2), JUMPS, strict=True):
        for name, marker in (("gelu", "o"), ("relu", "^")):
            own = [row for row in found if row["activation"] == name]
            points = axes.scatter(
                [row[jump][1] for row in own],
                [row[jump][0] for row in own],
                c=[np.log2(row["horizon"]) for row in own],
                marker=marker,
                s=28,
                label=name,
            )
        ends = [min(r[jump][1] for r in found), max(r[jump][1] for r in found)]
        axes.plot(ends, ends, color="0.5", lw=1)
        axes.fill_between(ends, [e / 2 for e in ends], [e * 2 for e in ends], color="0.9", zorder=0)
        axes.set(
            xscale="log",
            yscale="log",
            title=f"{jump} jump",
            xlabel="true mean |error|",
            ylabel="predicted",
        )
        axes.legend()
    figure.colorbar(points, label="log2 K")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted against true error of influences.")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    print(
        "activation  seed  lr      K   true |change|  linear: true  predicted  exact: true  pred."
    )
    for activation in ("gelu", "relu"):
        for seed in arguments.seeds:
            for lr in RATES:
                for horizon in HORIZONS:
                    torch.manual_seed(seed)
                    module = BUILTIN_MODELS["mlp"](
                        (64,), 10, hidden=(16, 16), activation=activation
                    )
                    task = Task(FlatModel(module, dtype=DTYPE), Classification(), TRAINING)
                    steps = plan(-(-STEPS * 64 // TRAIN), lr, 0.0)[:STEPS]
                    row = measure(task, steps, horizon, arguments.examples, arguments.rounds)
                    found.append({"activation": activation, "horizon": horizon} | row)
                    linear, exact = row["linear"], row["exact"]
                    print(
                        f"{activation:10s}  {seed:4d}  {lr:<6g} {horizon:3d} {linear[2]:13.2e}"
                        f"  {linear[1]:12.2e}  {linear[0]:9.2e}  {exact[1]:11.2e}  {exact[0]:.2e}",
                        flush=True,
                    )
    for jump in JUMPS:
        for name in ("gelu", "relu", "gelu and relu"):
            pairs = [row[jump][:2] for row in found if row["activation"] in name]
            predicted, true = np.array(pairs).T
            ratio = predicted / true
            print(
                f"{jump} jump, {name}: Spearman {spearmanr(predicted, true)[0]:.3f}, predicted / "
                f"true {np.median(ratio):.2f} (median), {np.quantile(ratio, 0.1):.2f} to "
                f"{np.quantile(ratio, 0.9):.2f} (8 of 10)"
            )
    if arguments.plot:
        plot(found, arguments.plot)


TRAINING, held_out = digits()
TARGET = Target("validation", held_out)

if __name__ == "__main__":
    main()
