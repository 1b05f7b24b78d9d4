"""Every key of a recipe, from the sections themselves: a page to read, a schema for editors.

    python -m curate.recipe.reference recipes

Docstrings under the keys are read here, from the source, and not by pydantic
(`use_attribute_docstrings`): that would cost every start of the program 0.08 s.
"""

import ast
import inspect
import json
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from curate.recipe.optimizers import OwnGroup
from curate.recipe.schema import Recipe
from curate.recipe.section import Section

SHORT: dict[str, dict[str, Any]] = {"Source": {"type": "string"}, "Keep": {"const": "auto"}}
"""What may stand for a section."""
ONE_FOR_A_LIST = (("Columns", "features"),)
"""Keys of a section that take one string for a list of one."""
HEAD = """\
# Keys of a recipe

Made by `python -m curate.recipe.reference recipes` from `curate/recipe/`; not to be edited.

`data.train` and `data.columns` are required, everything else has a default. An unknown key is
refused. `curate select RECIPE --set training.epochs=3` replaces one. With the line

    # yaml-language-server: $schema=schema.json

at its top (a path, relative to the recipe), editors that speak YAML complete and check a recipe as
it is typed.

A group of `training.optimizer.groups` that has a `kind` takes `match` and the keys of that
optimizer.
"""


def sections(of: type[Section] = Section) -> list[type[Section]]:
    """A section's class, and all that are made of it."""
    return [of, *(section for known in of.__subclasses__() for section in sections(known))]


def described(section: type[Section]) -> dict[str, str]:
    """What the keys of a section are, by key: its docstrings, and those of what it is made of."""
    found = dict[str, str]()
    for base in reversed(section.__mro__):
        body = list[ast.stmt]()
        if issubclass(base, Section):
            with suppress(OSError):  # made by `create_model`: no source, and no keys of its own
                body = ast.parse(inspect.getsource(base)).body[0].body  # type: ignore[attr-defined]
        for key, words in pairwise(body):
            match key, words:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = inspect.cleandoc(text)
    return found


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe as it may be written, short forms included."""
    found = _alternatives(_plain_schema())
    parts = found["$defs"]
    for name, key in ONE_FOR_A_LIST:
        parts[name]["properties"][key]["anyOf"].append({"type": "string"})
    for name, short in SHORT.items():
        parts[name] = {"anyOf": [short, parts[name]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def page() -> str:
    """The same in Markdown: a table for every section, in the order of a recipe."""
    found = _plain_schema()
    parts, lines, shown = found["$defs"], [HEAD], set[str]()

    def show(place: str, section: dict[str, Any]) -> None:
        about = section["description"].split("\n\n")[0]
        kind = section["properties"].get("kind", {}).get("const")
        title = f"{place}, kind {kind}" if kind else place or "recipe"
        lines.extend([f"## {title}", "", " ".join(about.split()), ""])
        lines.extend(["| key | value | default | |", "|---|---|---|---|"])
        inside = []
        for key, value in section["properties"].items():
            if key in section.get("required", ()):
                default = "required"
            else:
                default = f"`{json.dumps(value['default'])}`" if "default" in value else ""
            named = _named(value)
            words = value.get("description") or parts[named[0]]["description"]
            if named:
                default = ""
            cells = (f"`{key}`", _kind(value), default, " ".join(words.split()))
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
            inside += [(f"{place}.{key}".lstrip("."), name) for name in named]
        lines.append("")
        for inner, name in inside:
            if name not in shown and not name.endswith(OwnGroup.__name__):
                shown.add(name)
                show(inner, parts[name])

    show("", found)
    return "\n".join(lines)


def _plain_schema() -> dict[str, Any]:
    """Pydantic's, with a description of every key; none of one that its section says as well."""
    found = Recipe.model_json_schema()
    known = {section.__name__: section for section in sections()}
    for name, part in {**found["$defs"], Recipe.__name__: found}.items():
        for key, words in described(known[name]).items():
            value = part["properties"][key]
            if "$ref" not in value or words != found["$defs"][_named(value)[0]]["description"]:
                value["description"] = words
    return found


def _alternatives(value: Any) -> Any:
    """Any of several sections will do; the program itself says which one is meant."""
    if isinstance(value, dict):
        return {
            "anyOf" if key == "oneOf" else key: _alternatives(own) for key, own in value.items()
        }
    return [_alternatives(own) for own in value] if isinstance(value, list) else value


def _named(value: Any) -> list[str]:
    """The sections that a key may hold."""
    if isinstance(value, dict):
        if "$ref" in value:
            return [value["$ref"].rsplit("/", 1)[-1]]
        return [name for own in value.values() for name in _named(own)]
    return [name for own in value for name in _named(own)] if isinstance(value, list) else []


def _kind(value: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if "$ref" in value:
        return "section"
    for several in ("anyOf", "oneOf"):
        if several in value:
            return " or ".join(dict.fromkeys(_kind(own) for own in value[several]))
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{word}`" for word in value["enum"])
    if value.get("type") == "array":
        return f"list of {_kind(value['items'])}"
    limits = [
        f"{sign} {value[key]:g}"
        for key, sign in (
            ("exclusiveMinimum", ">"), ("minimum", ">="), ("exclusiveMaximum", "<"),
            ("maximum", "<="),
        )
        if key in value and value[key] < 10**6
    ]  # fmt: skip
    return " ".join([_WORDS[value.get("type", "")], ", ".join(limits)]).strip()


_WORDS = {
    "integer": "whole number", "number": "number", "string": "text", "boolean": "true or false",
    "null": "null", "object": "mapping", "": "anything",
}  # fmt: skip


def write(folder: Path) -> None:
    """Write `README.md` and `schema.json`."""
    (folder / "README.md").write_text(page(), encoding="utf-8")
    (folder / "schema.json").write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
