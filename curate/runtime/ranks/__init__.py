"""The processes that share one run."""

from curate.runtime.ranks.base import (
    ALONE,
    Alone,
    Ranks,
    agreed,
    everywhere,
    own_share,
    require_same,
    share,
)
from curate.runtime.ranks.group import Group, join_group

__all__ = [
    "ALONE",
    "Alone",
    "Group",
    "Ranks",
    "agreed",
    "everywhere",
    "join_group",
    "own_share",
    "require_same",
    "share",
]
