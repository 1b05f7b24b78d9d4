"""YAML as people mean it: `1e-3` is a number, `no` is a word, a key comes once."""

import re
from typing import Any

import yaml

from curate.errors import RecipeError

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


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise RecipeError(f"line {key_node.start_mark.line + 1}: key {key!r} is no word.")
            if key in seen:
                raise RecipeError(
                    f"line {key_node.start_mark.line + 1}: key {key} is given twice; keep one."
                )
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


def dump(value: Any) -> str:
    """YAML that `parse` reads back to the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, quoting whatever our loader would not read as a string."""

    yaml_implicit_resolvers = {}


for _tag, _pattern, _first in SCALARS:
    _Loader.add_implicit_resolver(TAG + _tag, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(TAG + _tag, re.compile(_pattern), _first)
