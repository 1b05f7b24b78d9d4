"""What scoring costs and what scores are worth on a small GPT, beside torch alone and bergson.

A GPT-2 of 4 layers x 256 from scratch (vocabulary 2,048, embeddings not tied), 32 steps of AdamW
at 1e-3 after 8 of warm-up, batches of 16 sequences of 128 tokens, one thread of a CPU; the target
is the loss on 16 other sequences. Each way is a process of its own:

    plain       a loop of torch's with the model's own loss
    replay      the same run by curate
    linear      curate: recorded and every sequence scored at K = T; 8 states and as many
                gradients in memory, the other states on disk
    all kept    the same with all states and gradients in memory
    in halves   the same as linear in micro-batches of 8 sequences
    jump        the same with the exact jump
    bergson     its trainer; then its MAGIC with sqrt(T) checkpoints, its default, and with all

and is given in CPU seconds, wall seconds, peak resident memory above what the process had after
its imports, and the target's loss at the end, which is to be the same. Before each, 3 GiB are
written and given back by a process of their own, so that no way pays for memory that a virtual
machine has yet to be given. Then 30 sequences are
left out, one by one, by the plain loop in float64, and predictions are compared with that.
At last, derivatives by a sequence's weight are compared with finite differences in float64, on a
GPT of 2 layers x 32 with embeddings tied and not.

    python examples/benchmarks/gpt/against_bergson.py --out DIR [--bergson PYTHON]

PYTHON is an interpreter that has bergson (2.5.1 was measured) and transformers of the same
version; without it, its ways are left out. Other sizes, or tied embeddings, go with --setting, as
JSON. Results go to DIR/results.json; what is found in DIR, for these options, is not done again.
About 25 CPU minutes.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.stats import pearsonr, spearmanr

HERE = Path(__file__).parent
SMALL = {
    "layers": 2,
    "width": 32,
    "heads": 2,
    "vocabulary": 64,
    "length": 16,
    "batch": 4,
    "steps": 4,
    "held": 4,
    "warmup": 2,
}
Scores = NDArray[np.float64]


def call(python: str, script: str, *arguments: str) -> dict[str, Any]:
    """What a script prints on its last line, if anything."""
    done = subprocess.run(
        [python, str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{script} {' '.join(arguments)}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    return found


def commands(folder: Path, bergson: str | None) -> dict[str, tuple[str, ...]]:
    """Name of each way -> interpreter, script and arguments."""
    own, here = sys.executable, str(folder)
    found: dict[str, tuple[str, ...]] = {
        "plain": (own, "plain.py", "train", here),
        "replay": (own, "scored.py", "replay", here),
        "linear": (own, "scored.py", "linear", here),
        "all kept": (own, "scored.py", "linear", here, "--in-memory", "32"),
        "in halves": (own, "scored.py", "linear", here, "--micro-batch", "8"),
    }
    if bergson is not None:
        for name, what in (("train", "train"), ("sqrt", "score"), ("all", "score")):
            work = str(folder / f"bergson-{name}")
            found[f"bergson {name}"] = (bergson, "magic.py", what, here, "--work", work)
        found["bergson all"] += ("--save-mode", "all")
    return found | {"jump": (own, "scored.py", "jump", here)}


def agreement(predicted: Scores, true: Scores) -> dict[str, float]:
    error = np.abs(predicted - true) / np.abs(true)
    return {
        "spearman": float(spearmanr(predicted, true)[0]),
        "pearson": float(pearsonr(predicted, true)[0]),
        "median_relative_error": float(np.median(error)),
    }


def renormalised(fixed: Scores, batch: int) -> Scores:
    """What scores for a fixed denominator say of a batch of one less; sequences of one length."""
    rows = fixed.reshape(-1, batch)
    changed: Scores = (batch * rows - rows.sum(axis=1, keepdims=True)) / (batch - 1)
    return changed.reshape(-1)


def worth(folder: Path, dtype: str, bergson: str | None) -> dict[str, Any]:
    """Predictions against what really happened."""
    truth = load_file(folder / f"truth-{dtype}.safetensors")
    rows, effects = truth["rows"], truth["effects"]
    setting = json.loads((folder / "setting.json").read_text())
    batch = setting["batch"]
    linear = load_file(folder / "linear-float32.safetensors")
    jump = load_file(folder / "jump-float32.safetensors")
    scores = {"curate linear": linear["renormalised"], "curate jump": jump["renormalised"]}
    found: dict[str, Any] = {"left out": len(rows), "median effect": float(np.median(abs(effects)))}
    if bergson is not None:
        own = load_file(folder / "bergson-sqrt" / "scores.safetensors")["fixed"]
        scores |= {"bergson": own, "bergson renormalised": renormalised(own, batch)}
        found["bergson with curate, all sequences"] = agreement(own, linear["fixed"])
    for when, chosen in (("", rows >= 0), ("after warm-up", rows >= batch * setting["warmup"])):
        found[f"predictions {when}".strip()] = {
            name: agreement(own[rows[chosen]], effects[chosen]) for name, own in scores.items()
        }
    return found


def small(folder: Path, tied: bool, bergson: str | None) -> dict[str, Any]:
    """Derivatives by weights against finite differences of the plain loop."""
    call(sys.executable, "setting.py", str(folder), json.dumps(SMALL | {"tied": tied}))
    call(sys.executable, "plain.py", "weigh", str(folder))
    own = call(sys.executable, "scored.py", "linear", str(folder), "--dtype", "float64")
    true = -load_file(folder / "differences.safetensors")["by_weight"]
    names = {"curate": folder / "linear-float64.safetensors"}
    targets = {"curate": own["target"], "plain": call_target(folder)}
    if bergson is not None:
        work = folder / "bergson"
        options = ["--precision", "fp64", "--work", str(work)]
        targets["bergson"] = call(bergson, "magic.py", "score", str(folder), *options)["target"]
        names["bergson"] = work / "scores.safetensors"
    found = {}
    for name, path in names.items():
        scores = load_file(path)["fixed"]
        error = float(np.abs(scores - true).max() / np.abs(true).max())
        found[name] = {"pearson": float(pearsonr(scores, true)[0]), "largest_error": error}
    return {"target": targets, "against differences": found}


def call_target(folder: Path) -> float:
    """Target loss of the plain loop in float64."""
    found = call(sys.executable, "plain.py", "leave", str(folder), "--examples", "0")
    return float(found["target"])


def show(results: dict[str, Any]) -> None:
    plain = results["ways"]["plain"]
    print("way              CPU s  x plain   wall s  peak MiB  x plain  target loss")
    for name, way in results["ways"].items():
        cpu, wall, peak = (way[key] for key in ("cpu_total", "wall_total", "peak"))
        target = f"{way['target']:12.6f}" if "target" in way else ""
        print(
            f"{name:14s} {cpu:7.1f} {cpu / plain['cpu_total']:8.2f} {wall:8.1f} {peak:9.0f} "
            f"{peak / plain['peak']:8.2f} {target}"
        )
    found = results["worth"]
    for when in ("", " after warm-up"):
        print(f"\n{'left out' + when:22s}  Spearman  Pearson  median relative error")
        for name, own in found["predictions" + when].items():
            print(
                f"{name:22s} {own['spearman']:9.4f} {own['pearson']:8.4f} "
                f"{own['median_relative_error']:22.4f}"
            )
    if own := found.get("bergson with curate, all sequences"):
        print(f"bergson with curate, all: Spearman {own['spearman']:.4f}, {own['pearson']:.4f}")
    print("\nfinite differences   Pearson  largest error  target loss  of plain")
    for kind in ("untied", "tied"):
        loss = results[kind]["target"]
        for name, own in results[kind]["against differences"].items():
            print(
                f"{kind:6s} {name:12s} {own['pearson']:9.6f} {own['largest_error']:14.2e} "
                f"{loss[name]:12.6f} {loss['plain']:9.6f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost and worth of scores on a small GPT.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bergson", help="interpreter that has bergson")
    parser.add_argument("--setting", type=json.loads, default={}, help="fields of `Setting`, JSON")
    parser.add_argument("--examples", type=int, default=30)
    parser.add_argument("--dtype", default="float64", help="of the runs that leave one out")
    arguments = parser.parse_args()
    out, bergson = arguments.out, arguments.bergson
    if bergson is None:
        print("bergson is left out: no --bergson PYTHON was given.")
    folder = out / "gpt"
    call(sys.executable, "setting.py", str(folder), json.dumps(arguments.setting))
    path = out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"ways": {}}
    for name, command in commands(folder, bergson).items():
        if name not in results["ways"]:
            results["ways"][name] = call(*command)
            path.write_text(json.dumps(results, indent=1))
    if not (folder / f"truth-{arguments.dtype}.safetensors").exists():
        options = ["--examples", str(arguments.examples), "--dtype", arguments.dtype]
        call(sys.executable, "plain.py", "leave", str(folder), *options)
    results["worth"] = worth(folder, arguments.dtype, bergson)
    for kind in ("untied", "tied"):
        results[kind] = small(out / f"small-{kind}", kind == "tied", bergson)
    path.write_text(json.dumps(results, indent=1))
    show(results)


if __name__ == "__main__":
    main()
