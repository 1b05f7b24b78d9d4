"""The `curate` command. Importing this loads no torch; each command loads what it needs."""

import functools
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curate.cli.arguments import PATH, RECIPE, print_versions
from curate.cli.export import export
from curate.cli.init import init
from curate.cli.process import (
    FAILURES,
    run,
    run_alone,
    run_together,
    same_command,
    silence_libraries,
)
from curate.errors import CurateError, RunError, UnfinishedError, UserError

if TYPE_CHECKING:
    from curate.recipe import Recipe
    from curate.runtime.ranks import Group

__all__ = ["cli", "main", "run"]

TRACK = click.option(
    "--track",
    multiple=True,
    metavar="KIND:WHERE",
    help="Watch it in tensorboard:DIRECTORY, wandb:PROJECT or mlflow:EXPERIMENT. Repeatable.",
)
ONE_PROCESS = {
    "tune": "start it several times with the same --out, and they share the work",
    "verify": "start it without torchrun",
}
"""Commands that several processes cannot share, and what to do instead."""


@dataclass(frozen=True)
class Shared:
    """The options that every command on a recipe has."""

    overrides: tuple[str, ...]
    device: str
    quiet: bool
    as_json: bool

    def recipe(self, path: Path, *changes: str) -> "Recipe":
        """The recipe at a path, with its overrides and more of them."""
        from curate.recipe import load_recipe

        recipe = load_recipe(path, (*self.overrides, *changes))
        silence_libraries()
        return recipe

    def running(self, *, speaks: bool = True) -> dict[str, Any]:
        """The arguments of a run: its device, and where progress and lines beforehand go."""
        from curate.runtime.progress import Phases, say

        speaks = speaks and not self.quiet
        phases = Phases(bars=speaks and sys.stderr.isatty())
        return {"device": self.device, "phases": phases, "say": say if speaks else _nothing}

    def close(self, summary: dict[str, Any], describe: Callable[[dict[str, Any]], str]) -> None:
        """Print a summary: as JSON, as closing lines, or not at all."""
        try:
            if self.as_json:
                click.echo(json.dumps(summary))
            elif not self.quiet:
                click.echo(shown(describe(summary)))
        except OSError as error:  # a full disk, or a pipe that nobody reads any more
            raise RunError(
                f"standard output: cannot be written: {error.strerror}; all else is done."
            ) from error


def shown(text: str) -> str:
    """Lines as a terminal is wide, the first in bold; as they are in a pipe or a file.

    Tables, whose cells lie two blanks apart, are left alone.
    """
    if not sys.stdout.isatty():
        return text
    from curate.output.words import wrap

    width = shutil.get_terminal_size().columns - 2
    lines = [line if "  " in line else "\n  ".join(wrap(line, width)) for line in text.split("\n")]
    plain = "NO_COLOR" in os.environ
    return "\n".join([lines[0] if plain else click.style(lines[0], bold=True), *lines[1:]])


def on_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Shared`, and overrides of its recipe."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the recipe, e.g. selection.horizon=7. Repeatable.",
    )(shared_options(command))


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Shared`, which it gets as `shared`."""

    @click.option(
        "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
    )
    @click.option("--quiet", is_flag=True, help="No progress bars and no closing lines.")
    @click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
    @functools.wraps(command)
    def with_shared(*arguments: Any, **options: Any) -> None:
        options.setdefault("overrides", ())
        shared = Shared(**{field.name: options.pop(field.name) for field in fields(Shared)})
        command(*arguments, shared=shared, **options)

    return with_shared


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_versions,
    help="What is installed.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Choose training data by what it does to the model."""
    if context.obj is not None and context.invoked_subcommand in ONE_PROCESS:
        name = context.invoked_subcommand
        raise UserError(f"curate {name} runs in one process; {ONE_PROCESS[name]}.")


@cli.command()
@click.argument("recipe", type=RECIPE)
@click.option("--out", type=PATH, help="Directory to write; out/NAME for NAME.yaml if not given.")
@click.option("--overwrite", is_flag=True, help="Replace DIR, or start again.")
@click.option("--resume", is_flag=True, help="Resume a run that did not finish.")
@click.option("--plan", is_flag=True, help="Say what it will take, and stop.")
@click.option(
    "--relabelled",
    type=PATH,
    metavar="FILE",
    help="Corrected labels by row, and see what they are worth: the recipe's data.relabelled.",
)
@TRACK
@on_recipe
@click.pass_obj
def select(
    group: "Group | None",
    /,
    recipe: Path,
    out: Path | None,
    plan: bool,
    track: tuple[str, ...],
    shared: Shared,
    **options: Any,
) -> None:
    """Score the rows of a dataset, keep the best, write them as an Arrow dataset.

    RECIPE is a file, or the name of a recipe that comes with curate, such as digits.
    What was computed is kept if this is interrupted or dies: --resume goes on from there.

    `torchrun --nproc-per-node N -m curate select RECIPE` shares the work among N processes.
    """
    relabelled = options.pop("relabelled")
    changes = [] if relabelled is None else [f"data.relabelled={json.dumps(str(relabelled))}"]
    checked = shared.recipe(recipe, *changes)
    from curate.cli.summary import describe_plan
    from curate.output.closing import closing_lines
    from curate.pipeline.forecast import plan_select
    from curate.pipeline.select import run_select
    from curate.recipe import resolved
    from curate.runtime.parts import MISSING, error_of
    from curate.runtime.ranks import ALONE
    from curate.runtime.trackers import tracking

    out, ranks = out or Path("out") / recipe.stem, group or ALONE
    if plan:
        if named := checked.code():
            warn(f"the recipe names code, which is run for the plan, too: {', '.join(named)}.")
        forecast = plan_select(checked, out, device=shared.device, ranks=ranks)
        replace(shared, quiet=False).close(forecast, describe_plan)
        return
    speaks = ranks.rank == 0
    options |= shared.running(speaks=speaks) | ({"say": None} if shared.quiet else {})
    with (
        saying_how_to_resume(out, group),
        tracking(track if speaks else (), resolved(checked), warn) as trackers,
    ):
        summary = run_select(checked, out, ranks=ranks, trackers=trackers, **options)
    shared.close(summary, closing_lines)
    if (failure := error_of(summary, out)) is not None:
        if summary.get(MISSING):
            failure.add_note(f"To make it: {_again(group)}.")
        raise failure


@contextmanager
def saying_how_to_resume(out: Path, group: "Group | None" = None) -> Iterator[None]:
    """Say, if a run to `out` ends early, how to go on with what is done."""
    from curate.runtime.resume import folder_of, has_progress

    try:
        yield
    except (CurateError, KeyboardInterrupt, *FAILURES) as error:
        if has_progress(folder_of(out)) and not isinstance(error, UnfinishedError):
            error.add_note(f"To resume: {_again(group)}.")
        raise


def _again(group: "Group | None") -> str:
    """How to go on with this run."""
    return f"`{same_command('--resume')}`" if group is None else "the same and --resume"


@cli.command()
@click.argument("run_or_recipe", type=RECIPE)
@click.option("--examples", default=64, show_default=True, help="Rows to leave out.")
@click.option("--horizon", metavar="K", help="Verify with another horizon; a number or full.")
@click.option(
    "--occurrences",
    type=click.Choice(["every", "last"]),
    default="every",
    show_default=True,
    help="Within a window: out of every step that has the row, or the last.",
)
@click.option(
    "--as",
    "mistaken",
    type=click.Choice(["sgd"]),
    help="Score the same run as if its optimizer were this one, too: what the mistake costs.",
)
@click.option("--seed", default=0, show_default=True, help="The seed of the draw of rows.")
@click.option(
    "--run-code",
    is_flag=True,
    help="Run the code that a directory's recipe names: its factory, objective, model.",
)
@click.option(
    "--out",
    type=PATH,
    help="Directory to write; if not given the run's own, or NAME.verify beside it where --horizon "
    "or --set changes it, or out/NAME.verify for NAME.yaml.",
)
@on_recipe
def verify(
    run_or_recipe: Path,
    horizon: str | None,
    out: Path | None,
    run_code: bool,
    shared: Shared,
    **plan: Any,
) -> None:
    """Leave rows out, train again, and see what the influences of a run are worth.

    RUN_OR_RECIPE is a directory that `curate select` wrote, or a recipe. What was measured
    is kept if this is interrupted: run it again to go on.
    """
    is_run = run_or_recipe.is_dir()
    path = run_or_recipe / "recipe.yaml" if is_run else run_or_recipe
    checked = shared.recipe(path, *([f"selection.horizon={horizon}"] if horizon else []))
    if is_run and not run_code and (named := checked.code()):
        raise UserError(
            f"{path}: names code, which verifying runs: {', '.join(named)}; look at it, and give "
            "--run-code if it is yours or you trust it."
        )
    from curate.cli.summary import describe_verification
    from curate.pipeline.verify import RemovalPlan, run_verify
    from curate.runtime.parts import error_of

    changed = bool(shared.overrides or horizon)
    if out is None and is_run:
        whole = run_or_recipe.resolve()
        out = whole.with_name(f"{whole.name}.verify") if changed else run_or_recipe
    out = out or Path("out") / f"{run_or_recipe.stem}.verify"
    with resumable("measured"):
        _, summary = run_verify(
            checked,
            out,
            RemovalPlan(**plan | {"mistaken": plan["mistaken"] is not None}),
            run=run_or_recipe if is_run and not changed else None,
            **shared.running(),
        )
    shared.close(summary, describe_verification)
    if (failure := error_of(summary, out)) is not None:
        raise failure


@cli.command()
@click.argument("recipe", type=RECIPE)
@click.option(
    "--out",
    type=PATH,
    help="Directory to write, and to resume from; out/NAME.tune for NAME.yaml if not given.",
)
@click.option("--storage", metavar="URL", help="Database of the study, to share among machines.")
@TRACK
@on_recipe
def tune(
    recipe: Path, out: Path | None, storage: str | None, track: tuple[str, ...], shared: Shared
) -> None:
    """Find the horizon and the learning rate whose selection trains the best model.

    What was tried is kept if this is interrupted: run it again to go on. Run it
    twice with the same --out, and the two share the work.
    """
    checked = shared.recipe(recipe)
    from curate.cli.summary import describe_tuning
    from curate.recipe import resolved
    from curate.runtime.trackers import tracking
    from curate.tuning.tune import tune as run_tune

    out = out or Path("out") / f"{recipe.stem}.tune"
    with resumable("tried"), tracking(track, resolved(checked), warn) as trackers:
        tuned = run_tune(checked, out, storage=storage, trackers=trackers, **shared.running())
    if shared.as_json:
        click.echo((out / "tune.json").read_text(encoding="utf-8"), nl=False)
    else:
        shared.close(tuned.summary(), lambda summary: describe_tuning(summary, tuned.table, out))


@cli.command()
@click.argument("selection", type=PATH)
@click.argument("data")
@click.option("--out", type=PATH, required=True, help="Directory to write.")
@click.option("--split", help="Which split of DATA, where it has several.")
@click.option("--overwrite", is_flag=True, help="Replace DIR, or start again.")
@click.option("--resume", is_flag=True, help="Resume a run that did not finish.")
@click.option(
    "--run-code", is_flag=True, help="Run the code that SELECTION names: its factory, model."
)
@shared_options
def apply(selection: Path, data: str, out: Path, shared: Shared, **options: Any) -> None:
    """Score the rows of DATA with what SELECTION learned, and write those that it would keep.

    SELECTION is a directory that `curate select` wrote of a recipe with `score: {sample: N}`. DATA
    is named as in a recipe, with the same columns. Rows go through as a stream; what was scored is
    kept if this is interrupted or dies: --resume goes on from there.
    """
    silence_libraries()
    from curate.cli.summary import describe_application
    from curate.pipeline.apply import run_apply

    running = shared.running()
    del running["say"]
    with saying_how_to_resume(out):
        summary = run_apply(selection, data, out, **options, **running)
    shared.close(summary, describe_application)


@cli.command()
@click.argument("directory", metavar="DIR", type=PATH)
def report(directory: Path) -> None:
    """Write report.html again from what a directory of curate select holds."""
    silence_libraries()
    from curate.output.page import write_report

    click.echo(f"wrote {write_report(directory)}")


@cli.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.option("--row", type=int, metavar="N", help="One row, with everything known about it.")
@click.option("--dropped", type=click.IntRange(1), metavar="N", help="The N worst dropped rows.")
@click.option("--kept", type=click.IntRange(1), metavar="N", help="The N best kept rows.")
@click.option("--label", metavar="L", help="Only rows of this label.")
@click.option("--by", metavar="COLUMN", help="Mean influences and mixture weights by its values.")
@click.option("--weights", type=PATH, metavar="FILE", help="Write those as JSON; with --by.")
@click.option("--json", "as_json", is_flag=True, help="Print those as JSON; with --by.")
def inspect(
    directory: Path, by: str | None, weights: Path | None, as_json: bool, **chosen: Any
) -> None:
    """Look at what curate select wrote to DIR: a summary, one row, or a list of rows.

    With --by, rows are added up by the values of a column, such as where they are from: what
    they do to the target on average, how many are kept, and by which weights to mix them.
    """
    silence_libraries()
    from curate.output.inspect import inspect_mixture, inspect_run

    if by is None:
        if weights is not None or as_json:
            raise UserError("--weights and --json need --by COLUMN.")
        lines = inspect_run(directory, **chosen)
    else:
        if any(value is not None for value in chosen.values()):
            raise UserError(
                "--by adds up all rows; leave out --row, --dropped, --kept and --label."
            )
        lines = inspect_mixture(directory, by, weights=weights, as_json=as_json)
    click.echo("\n".join(lines))


cli.add_command(init)
cli.add_command(export)


def _nothing(_: str) -> None:
    """Say nothing."""


def warn(line: str) -> None:
    """Print a line about what went wrong beside the run, which goes on."""
    click.echo(f"curate: {line}", err=True)


@contextmanager
def resumable(done: str) -> Iterator[None]:
    """Say, if interrupted, that what was done is kept."""
    try:
        yield
    except KeyboardInterrupt:
        warn(f"what was {done} is kept; run it again to go on.")
        raise


def main() -> None:
    """The entry point: run a command and turn errors into one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):  # ± and the like, where it can only be ASCII
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    together = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    sys.exit(run_together(cli) if together else run_alone(cli))
