"""From a file and `--set` overrides to a checked recipe, and back to a file."""

import copy
import hashlib
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from curate.errors import RecipeError
from curate.recipe.built_in import built_in, find_recipe
from curate.recipe.optimizers import UNMODELED
from curate.recipe.places import advice
from curate.recipe.schema import Recipe

WIDTH = 96
"""Columns of a line with a comment."""
DATA = (".csv", ".tsv", ".jsonl", ".parquet", ".arrow")
"""Endings of files that are no recipes."""
TAG = "tag:yaml.org,2002:"
SCALARS = (
    ("null", r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"[-+]?[0-9]+$", list("-+0123456789")),
    (
        "float",
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
)
_GONE = {
    "selection.aggregate": "is gone: several targets are averaged, by selection.weights if given; "
    "remove it",
    "selection.curvature": "is gone: it is always that of the loss itself; remove it",
    "selection.stride": "is gone: every window is decided whole; remove it",
    "training.autocast": "is gone: write training.precision: bf16",
    "trajectory.tapes": "is gone: nothing of a step is kept but its state and gradient; remove it",
}
"""Keys that older recipes have, and why they were removed."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe: defaults < file < overrides (`a.b=value`, the value is YAML).

    path: a file, or the name of a built-in recipe; a file of that name wins.

    Raises:
        RecipeError: the file cannot be read, or a key is wrong; the message
            has the path of the key.
    """
    if Path(path).suffix.lower() in DATA and Path(path).exists():
        raise RecipeError(f"{path}: is data, not a recipe; curate init {path} writes one for it.")
    try:
        text = find_recipe(Path(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        if not Path(path).suffix and isinstance(error, FileNotFoundError):
            reason += f"; built-in ones are {', '.join(built_in())}"
        raise RecipeError(f"{path}: cannot read the recipe: {reason}.") from error
    try:
        return check_recipe(parse(text), overrides)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def check_recipe(raw: Any, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from plain values; raises as `load_recipe` does."""
    if not isinstance(raw, dict):
        raise RecipeError(
            f"a recipe is a mapping of sections such as data: and training:, "
            f"but this is {'empty' if raw is None else 'a ' + type(raw).__name__}."
        )
    for override in overrides:
        raw = _override(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(_one_line(error)) from error


def write_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every default spelled out; loading it gives `recipe` again."""
    return dump(resolved(recipe))


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Plain values, every default spelled out."""
    plain = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.data.columns.label is None:  # which is not its default
        plain["data"]["columns"]["label"] = None
    return plain


def fingerprint(recipe: Recipe) -> str:
    """A hash that is equal when two recipes ask for the same thing."""
    text = json.dumps(resolved(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set must look like a.b=value but got {override!r}.")
    raw = copy.deepcopy(raw)
    section = raw
    for depth, key in enumerate(keys[:-1]):
        inner = section.setdefault(key, {})
        if isinstance(inner, str) and keys[0] == "data":
            inner = section[key] = {"path": inner}
        if not isinstance(inner, dict):
            raise RecipeError(
                f"--set {override}: {'.'.join(keys[: depth + 1])} is {inner!r}, not a section."
            )
        section = inner
    section[keys[-1]] = parse(text)
    return raw


def _one_line(error: ValidationError) -> str:
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda e: e["type"] != "extra_forbidden")  # unknown keys first
    path = _place(first)
    message = _message(first)
    if len(errors) > 1:
        message += f" (and {len(errors) - 1} more)"
    if not message.endswith("?"):
        message += "."
    return f"{path}: {message}" if path else message


def _place(error: Any) -> str:
    """The path of a key, without the tags of kinds."""
    return ".".join(str(part) for part in error["loc"] if not str(part).startswith("~"))


def _message(error: Any) -> str:
    kind, got = error["type"], error["input"]
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        key = str(error["loc"][-1])
        if gone := _GONE.get(".".join(str(part) for part in error["loc"])):
            return gone
        if key in UNMODELED:
            return "is not modeled; remove it"
        return advice(_place(error))
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    if kind in ("optimizer_kind", "model_kind"):
        return f"{error['msg']}, but got {got!r}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a mapping of keys but got {got!r}"
    if kind in ("too_short", "too_long"):
        least, most = error["ctx"].get("min_length"), error["ctx"].get("max_length")
        bound = f"at least {least}" if least else f"at most {most}"
        return f"must have {bound} item(s) but got {got!r}"
    text = re.sub("^Input should", "must", str(error["msg"]))
    shown = repr(got) if not isinstance(got, dict | list) else f"a {type(got).__name__}"
    return f"{text} but got {shown}"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            line = f"line {key_node.start_mark.line + 1}"
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise RecipeError(f"{line}: keys must be strings but got {key!r}.")
            if key in seen:
                raise RecipeError(f"{line}: key {key} is given twice; keep one.")
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse(text: str) -> Any:
    """One YAML document as plain Python values.

    Raises:
        RecipeError: the text is not YAML, or a key comes twice.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: plain values only
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise RecipeError(f"{line}not valid YAML: {error.problem}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"not valid YAML: {' '.join(str(error).split())}.") from error


def dump(value: Any, **style: Any) -> str:
    """YAML that `parse` reads back to the same value; `style`: as PyYAML's own has it."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)
    return text


def _lines(key: str, value: Any) -> list[str]:
    """A key as YAML; what holds nothing nested is in one line, if it is short."""
    nested = isinstance(value, dict | list)
    text = dump({key: value}, default_flow_style=None if nested else False, width=WIDTH)
    return text.split("\n")[:-1]


def commented(recipe: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """A recipe of plain values as YAML, with notes as comments.

    Args:
        notes: by key, `training.epochs`, or by section; "" is above all.
    """
    lines = _comment(notes.get("", ""))
    for name, section in recipe.items():
        lines += ["", *_comment(notes.get(name, ""))]
        if not isinstance(section, dict):
            lines += _lines(name, section)
            continue
        lines.append(f"{name}:")
        for key, value in section.items():
            own = [f"  {line}" for line in _lines(key, value)]
            note = _comment(notes.get(f"{name}.{key}", ""))
            beside = len(own) == len(note) == 1 and len(own[0]) + len(note[0]) + 2 <= WIDTH
            lines += [f"{own[0]}  {note[0]}"] if beside else [*(f"  {n}" for n in note), *own]
    return "\n".join([*lines, ""])


def _comment(note: str) -> list[str]:
    """Lines of a comment, whatever is in the note."""
    plain = "".join(c if c.isprintable() else " " for c in note)
    return [f"# {line}" for line in textwrap.wrap(plain, WIDTH - 4)]


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, quoting whatever our loader would not read as a string."""

    yaml_implicit_resolvers = {}


for _tag, _pattern, _first in SCALARS:
    _Loader.add_implicit_resolver(TAG + _tag, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(TAG + _tag, re.compile(_pattern), _first)
