"""The processes that share one run."""

from curate.runtime.ranks.base import (
    ALONE,
    Alone,
    Ranks,
    agreed,
    everywhere,
    exchanged,
    own_share,
    require_same,
    share,
    shares,
)
from curate.runtime.ranks.group import Group, Members, join_group

__all__ = [
    "ALONE",
    "Alone",
    "Group",
    "Members",
    "Ranks",
    "agreed",
    "everywhere",
    "exchanged",
    "join_group",
    "own_share",
    "require_same",
    "share",
    "shares",
]
