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
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from curate.recipe.optimizers import OwnGroup
from curate.recipe.schema import Recipe
from curate.recipe.section import Section, sections

SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
SHORT: dict[str, dict[str, Any]] = {
    "Source": {"type": "string"},
    "Keep": {"anyOf": [{"const": "auto"}, SHARE]},
}
"""What may stand for a section."""
ONE_FOR_A_LIST = (("Columns", "features"),)
"""Keys of a section that take one string for a list of one."""
SIGNS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
WORDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
    "": "anything",
}
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


def described(section: type[Section]) -> dict[str, str]:
    """The docstrings under the keys of a section and of those it inherits from, by key."""
    words = dict[str, str]()
    for base in reversed(section.__mro__):
        words |= _docstrings(base) if issubclass(base, Section) else {}
    return words


@cache
def _docstrings(section: type[Section]) -> dict[str, str]:
    words = dict[str, str]()
    with suppress(OSError):  # made by `create_model`: no source, and no keys of its own
        (definition,) = ast.parse(inspect.getsource(section)).body
        assert isinstance(definition, ast.ClassDef)
        for key, docstring in pairwise(definition.body):
            match key, docstring:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    words[name] = inspect.cleandoc(text)
    return words


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe as it may be written, short forms included."""
    whole = _alternatives(_plain_schema())
    parts = whole["$defs"]
    for name, key in ONE_FOR_A_LIST:
        parts[name]["properties"][key]["anyOf"].append({"type": "string"})
    for name, short in SHORT.items():
        parts[name] = {"anyOf": [short, parts[name]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole}


def page() -> str:
    """The keys in Markdown: a table for every section, in the order of a recipe."""
    whole = _plain_schema()
    parts, lines, shown = whole["$defs"], [HEAD], set[str]()

    def show(place: str, section: dict[str, Any]) -> None:
        about = section["description"].split("\n\n")[0]
        kind = section["properties"].get("kind", {}).get("const")
        title = f"{place}, kind {kind}" if kind else place or "recipe"
        lines.extend([f"## {title}", "", " ".join(about.split()), ""])
        lines.extend(["| key | value | default | |", "|---|---|---|---|"])
        inside = []
        for key, value in section["properties"].items():
            names = _sections_in(value)
            default = f"`{json.dumps(value['default'])}`" if "default" in value else ""
            if names:
                default = ""
            elif key in section.get("required", ()):
                default = "required"
            words = value.get("description") or parts[names[0]]["description"]
            cells = (f"`{key}`", _kind(value), default, " ".join(words.split()))
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
            inside += [(f"{place}.{key}".lstrip("."), name) for name in names]
        lines.append("")
        for inner, name in inside:
            if name not in shown and not name.endswith(OwnGroup.__name__):
                shown.add(name)
                show(inner, parts[name])

    show("", whole)
    return "\n".join(lines)


def _plain_schema() -> dict[str, Any]:
    """Pydantic's schema, with a description of every key that its section does not repeat."""
    whole = Recipe.model_json_schema()
    classes = {section.__name__: section for section in sections(Section)}
    for name, part in {**whole["$defs"], Recipe.__name__: whole}.items():
        for key, words in described(classes[name]).items():
            value = part["properties"][key]
            if (
                "$ref" not in value
                or words != whole["$defs"][_sections_in(value)[0]]["description"]
            ):
                value["description"] = words
    return whole


def _alternatives(value: Any) -> Any:
    """`value` with anyOf for oneOf: the program itself says which section is meant."""
    if isinstance(value, list):
        return [_alternatives(item) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {"anyOf" if key == "oneOf" else key: item for key, item in value.items()}
    return {key: _alternatives(item) for key, item in renamed.items()}


def _sections_in(value: Any) -> list[str]:
    """The sections that a key may hold."""
    if isinstance(value, dict) and "$ref" in value:
        return [value["$ref"].rsplit("/", 1)[-1]]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for item in items for name in _sections_in(item)]


def _kind(value: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if "$ref" in value:
        return "section"
    if alternatives := value.get("anyOf", value.get("oneOf")):
        return " or ".join(dict.fromkeys(_kind(item) for item in alternatives))
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{word}`" for word in value["enum"])
    if value.get("type") == "array":
        return f"list of {_kind(value['items'])}"
    limits = [
        f"{sign} {value[key]:g}"
        for key, sign in SIGNS.items()
        if key in value and value[key] < 10**6
    ]
    return " ".join([WORDS[value.get("type", "")], ", ".join(limits)]).strip()


def write(folder: Path) -> None:
    """Write `README.md` and `schema.json`."""
    (folder / "README.md").write_text(page(), encoding="utf-8")
    (folder / "schema.json").write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
