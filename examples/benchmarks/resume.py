"""Kill `curate select` at random moments, resume it, and compare with a run left alone.

`python examples/benchmarks/resume.py recipes/digits.yaml --kills 20` runs the recipe once to its
end, then as often as it is told: start it, kill it (SIGKILL) at a moment drawn over the
length of the whole run, resume it; half of the time the resumed run is killed, too, and resumed.
Scores, shards and what was measured must have the same hashes. Also prints what savepoints cost.
"""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

CURATE = [sys.executable, "-m", "curate", "select"]


def outcome(out: Path) -> dict[str, str]:
    """Hashes of a run's scores and shards, and what its retrainings measured."""
    paths = [out / "scores.parquet", out / "windows.parquet", *sorted(out.glob("train/*.arrow"))]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    made = json.loads((out / "provenance.json").read_text())
    return hashes | {name: json.dumps(made.get(name)) for name in ("worth", "evaluation")}


def run_for(seconds: float | None, recipe: str, out: Path, *flags: str) -> float | None:
    """Run, at most for so long, then SIGKILL. How long it took; None if it was killed."""
    begin = time.monotonic()
    process = subprocess.Popen([*CURATE, recipe, "--out", str(out), "--quiet", *flags])
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None
    if code:
        raise SystemExit(f"curate select {recipe} ended with exit code {code}")
    return time.monotonic() - begin


def left_of(out: Path) -> str:
    """What a killed run left, in words."""
    folder = out.with_name(f".{out.name}.unfinished")
    points = [path.stem for path in folder.glob("score-look_ahead/[0-9]*.safetensors")]
    journal = folder / "evaluation.jsonl"
    lines = len(journal.read_bytes().splitlines()) - 1 if journal.exists() else 0
    return f"savepoint {int(max(points))}, {lines} retrainings" if points else "nothing"


@click.command()
@click.argument("recipe")
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(recipe: str, kills: int, seed: int) -> None:
    """Kill and resume, and count what comes to the same."""
    draw, same = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        whole, out = Path(folder) / "whole", Path(folder) / "out"
        run_for(None, recipe, whole)
        length = run_for(None, recipe, whole, "--overwrite")
        assert length is not None
        expected = outcome(whole)
        print(f"never stopped: {length:.1f} s")
        for k in range(kills):
            times, begun = [draw.uniform(0.2, 1.0) * length for _ in range(1 + k % 2)], []
            for seconds in times:
                killed = run_for(seconds, recipe, out, "--resume") is None
                begun.append(left_of(out) if killed else "it was done")
                if not killed:
                    break
            if not out.exists():
                run_for(None, recipe, out, "--resume")
            agrees = outcome(out) == expected and not list(Path(folder).glob(".*"))
            same += agrees
            after = ", ".join(f"{t:.1f} s ({left})" for t, left in zip(times, begun, strict=False))
            print(f"{k + 1}: killed after {after}: {'the same' if agrees else 'ANOTHER RESULT'}")
            shutil.rmtree(out)
    print(f"{same} of {kills} resumed runs are the same, bit for bit")
    sys.exit(same < kills)


if __name__ == "__main__":
    main()
