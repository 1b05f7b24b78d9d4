"""The `curate` command. Importing this loads no torch; each command loads what it needs."""

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from curate.cli.process import (
    FAILURES,
    run,
    run_alone,
    run_together,
    same_command,
    silence_libraries,
)
from curate.errors import CurateError, UnfinishedError, UserError

if TYPE_CHECKING:
    from curate.runtime.ranks import Group

OVERRIDES = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe, e.g. selection.horizon=7. Repeatable.",
)
TRACK = click.option(
    "--track",
    multiple=True,
    metavar="KIND:WHERE",
    help="Watch it in tensorboard:DIRECTORY, wandb:PROJECT or mlflow:EXPERIMENT. Repeatable.",
)
DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)

__all__ = ["cli", "main", "run"]

ONE_PROCESS = {
    "tune": "start it several times with the same --out, and they share the work",
    "verify": "start it without torchrun",
}
"""Commands that several processes cannot share, and what to do instead."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="curate")
@click.pass_context
def cli(context: click.Context) -> None:
    """Choose training data by what it does to the model."""
    if context.obj is not None and context.invoked_subcommand in ONE_PROCESS:
        name = context.invoked_subcommand
        raise UserError(f"curate {name} runs in one process; {ONE_PROCESS[name]}.")


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory to write; out/NAME for NAME.yaml if not given.",
)
@OVERRIDES
@DEVICE
@click.option("--overwrite", is_flag=True, help="Replace DIR, or start again.")
@click.option("--resume", is_flag=True, help="Go on with a run that did not finish.")
@click.option("--plan", is_flag=True, help="Say what it will take, and stop.")
@TRACK
@click.option("--quiet", is_flag=True, help="No progress bars and no closing lines.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_obj
def select(
    group: "Group | None", recipe: Path, out: Path | None, overrides: tuple[str, ...], device: str,
    overwrite: bool, resume: bool, plan: bool, track: tuple[str, ...], quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Score the rows of a dataset, keep the best, write them as an Arrow dataset.

    What was computed is kept if this is interrupted or dies: --resume goes on from there.

    `torchrun --nproc-per-node N -m curate select RECIPE` shares the work among N processes.
    """
    from curate.recipe import load_recipe, resolved
    from curate.runtime.trackers import tracking

    checked = load_recipe(recipe, overrides)
    silence_libraries()
    from curate.cli.summary import describe, describe_plan
    from curate.pipeline.forecast import plan_select
    from curate.pipeline.select import run_select
    from curate.runtime.progress import Phases
    from curate.runtime.ranks import ALONE
    from curate.runtime.resume import folder_of, has_progress

    out, ranks = out or Path("out") / recipe.stem, group or ALONE
    if plan:
        found = plan_select(checked, out, device=device, ranks=ranks)
        click.echo(json.dumps(found) if as_json else describe_plan(found))
        return
    speaks = ranks.rank == 0
    try:
        with tracking(track if speaks else (), resolved(checked), warn) as trackers:
            summary = run_select(
                checked, out, device=device, overwrite=overwrite, resume=resume, ranks=ranks,
                trackers=trackers,
                phases=Phases(bars=speaks and not quiet and sys.stderr.isatty()),
                say=None if quiet else lambda line: click.echo(line, err=True) if speaks else None,
            )  # fmt: skip
    except (CurateError, KeyboardInterrupt, *FAILURES) as error:
        if has_progress(folder_of(out)) and not isinstance(error, UnfinishedError):
            again = f"`{same_command('--resume')}`" if group is None else "the same and --resume"
            error.add_note(f"Go on with {again}.")
        raise
    if as_json:
        click.echo(json.dumps(summary))
    elif not quiet:
        click.echo(describe(summary))


@cli.command()
@click.argument("run_or_recipe", type=click.Path(path_type=Path))
@click.option("--examples", type=int, default=64, show_default=True, help="Rows to leave out.")
@click.option("--horizon", metavar="K", help="Verify with another horizon; a number or full.")
@click.option(
    "--occurrences", type=click.Choice(["every", "last"]), default="every", show_default=True,
    help="Within a window: out of every step that has the row, or the last.",
)  # fmt: skip
@click.option(
    "--as", "mistaken", type=click.Choice(["sgd"]),
    help="Score the same run as if its optimizer were this one, too: what the mistake costs.",
)  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the rows drawn.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory to write; if not given the run's own, or NAME.verify beside it where --horizon "
    "or --set changes it, or out/NAME.verify for NAME.yaml.",
)
@OVERRIDES
@DEVICE
@click.option("--quiet", is_flag=True, help="No progress bars and no closing lines.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def verify(
    run_or_recipe: Path, examples: int, horizon: str | None, occurrences: str, mistaken: str | None,
    seed: int, out: Path | None, overrides: tuple[str, ...], device: str, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Leave rows out, train again, and see what the influences of a run are worth.

    RUN_OR_RECIPE is a directory that `curate select` wrote, or a recipe. What was measured
    is kept if this is interrupted: run it again to go on.
    """
    from curate.recipe import load_recipe

    changes = (*overrides, *([f"selection.horizon={horizon}"] if horizon else []))
    is_run = run_or_recipe.is_dir()
    checked = load_recipe(run_or_recipe / "recipe.yaml" if is_run else run_or_recipe, changes)
    silence_libraries()
    from curate.cli.summary import describe_verification
    from curate.pipeline.verify import RemovalPlan, run_verify
    from curate.runtime.progress import Phases

    if out is None and is_run:
        own = run_or_recipe.resolve()
        out = own.with_name(f"{own.name}.verify") if changes else run_or_recipe
    try:
        _, summary = run_verify(
            checked,
            out or Path("out") / f"{run_or_recipe.stem}.verify",
            RemovalPlan(examples, occurrences, mistaken is not None, seed),  # type: ignore[arg-type]
            run=run_or_recipe if is_run and not changes else None,
            device=device,
            phases=Phases(bars=not quiet and sys.stderr.isatty()),
            say=lambda line: None if quiet else click.echo(line, err=True),
        )
    except KeyboardInterrupt:
        click.echo("curate: what was measured is kept; run it again to go on.", err=True)
        raise
    if as_json:
        click.echo(json.dumps(summary))
    elif not quiet:
        click.echo(describe_verification(summary))


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory to write and to go on from; out/NAME.tune for NAME.yaml if not given.",
)
@click.option(
    "--storage", metavar="URL", help="Database for the study, e.g. to share it among machines."
)
@OVERRIDES
@DEVICE
@TRACK
@click.option("--quiet", is_flag=True, help="No progress and no closing lines.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def tune(
    recipe: Path, out: Path | None, storage: str | None, overrides: tuple[str, ...], device: str,
    track: tuple[str, ...], quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Find the horizon and the learning rate whose selection trains the best model.

    What was tried is kept if this is interrupted: run it again to go on. Run it
    twice with the same --out, and the two share the work.
    """
    from curate.recipe import load_recipe, resolved
    from curate.runtime.trackers import tracking

    checked = load_recipe(recipe, overrides)
    silence_libraries()
    from curate.cli.summary import describe_tuning
    from curate.runtime.progress import Phases
    from curate.tuning.tune import tune as run_tune

    out = out or Path("out") / f"{recipe.stem}.tune"
    try:
        with tracking(track, resolved(checked), warn) as trackers:
            tuned = run_tune(
                checked, out, storage=storage, device=device, trackers=trackers,
                phases=Phases(bars=not quiet and sys.stderr.isatty()),
                say=lambda line: None if quiet else click.echo(line, err=True),
            )  # fmt: skip
    except KeyboardInterrupt:
        click.echo("curate: what was tried is kept; run it again to go on.", err=True)
        raise
    if as_json:
        click.echo((out / "tune.json").read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        click.echo(describe_tuning(tuned.summary(), tuned.table, out))


def warn(line: str) -> None:
    """What went wrong beside the run, which goes on."""
    click.echo(f"curate: {line}", err=True)


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def report(directory: Path) -> None:
    """Write report.html again from what a directory of curate select holds."""
    silence_libraries()
    from curate.output.page import write_report

    click.echo(f"wrote {write_report(directory)}")


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--row", type=int, metavar="N", help="One row, with everything known about it.")
@click.option("--dropped", type=click.IntRange(1), metavar="N", help="The N worst dropped rows.")
@click.option("--kept", type=click.IntRange(1), metavar="N", help="The N best kept rows.")
@click.option("--label", metavar="L", help="Only rows of this label.")
def inspect(
    directory: Path, row: int | None, dropped: int | None, kept: int | None, label: str | None
) -> None:
    """Look at what curate select wrote to DIR: a summary, one row, or a list of rows."""
    silence_libraries()
    from curate.output.inspect import inspect_run

    found = inspect_run(directory, row=row, dropped=dropped, kept=kept, label=label)
    click.echo("\n".join(found))


def main() -> None:
    """The entry point: run a command and turn errors into one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # ± and the like, where it can only be ASCII
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    together = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    sys.exit(run_together(cli) if together else run_alone(cli))
