"""Arguments that commands share, and what a shell completes for them."""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

PATH = click.Path(path_type=Path)


class RecipePath(click.Path):
    """A recipe's file, or the name of a built-in one."""

    def shell_complete(
        self, context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Built-in names and recipes in the working directory; else the shell's own, files."""
        from curate.recipe.built_in import built_in

        names = [*sorted(path.name for path in Path().glob("*.yaml")), *built_in()]
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return found or super().shell_complete(context, parameter, incomplete)


RECIPE = RecipePath(path_type=Path)


def print_versions(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """What is installed, a line each, and end."""
    if not wanted or context.resilient_parsing:
        return
    from curate.runtime.versions import versions

    found = versions()
    click.echo(f"curate {found.pop('curate')}")
    click.echo("\n".join(f"{name} {version}" for name, version in found.items()))
    context.exit()
