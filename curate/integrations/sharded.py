"""A model that `fully_shard` has spread over processes, and how it is whole for a while.

Each process then has a part of every parameter (a DTensor), which the optimizer moves, and the
model's own hooks gather the whole for a pass. Look-ahead simulates with whole parameters instead,
all of them at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from curate.errors import UserError

HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has a part of the parameters.

    Raises:
        UserError: and that otherwise than `fully_shard` does it.
    """
    layers = [*model.modules()]
    if any(type(layer).__name__ == "FullyShardedDataParallel" for layer in layers):
        raise UserError(
            "FullyShardedDataParallel flattens weights, which look-ahead cannot read; use "
            "fully_shard or DistributedDataParallel."
        )
    parted = [name for name, p in model.named_parameters() if hasattr(p, "full_tensor")]
    if not parted:
        return False
    if not _units(model) or len(parted) < len([*model.parameters()]):
        raise UserError(
            f"parameter {parted[0]} is a DTensor, spread over processes otherwise than by "
            "fully_shard of the whole model, which look-ahead cannot gather; use fully_shard or "
            "DistributedDataParallel."
        )
    return True


def part_like(tensor: Tensor, p: Any) -> Tensor:
    """This process's part of a whole tensor, if it has only a part of the parameter p."""
    if not hasattr(p, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, p.device_mesh, p.placements)


def group_of(model: nn.Module) -> Any:
    """The process group that a model is spread over; None for all processes, or for no model."""
    parameters: Iterator[Any] = model.parameters()
    mesh = next((p.device_mesh for p in parameters if hasattr(p, "full_tensor")), None)
    return mesh.get_group() if mesh is not None and mesh.ndim == 1 else None


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """A block in which a sharded model has whole parameters, and none of the hooks that gather.

    Waits for the other processes. Memory: all parameters.
    """
    hooks = [(vars(layer), name, vars(layer)[name]) for layer in model.modules() for name in HOOKS]
    units = _units(model)
    try:
        for unit in units:
            unit.unshard()
        for attributes, name, known in hooks:
            attributes[name] = type(known)(
                (key, hook) for key, hook in known.items() if not _gathers(hook)
            )
        yield
    finally:
        for attributes, name, known in hooks:
            attributes[name] = known
        for unit in units:
            unit.reshard()


def _units(model: nn.Module) -> list[Any]:
    return [layer for layer in model.modules() if hasattr(layer, "unshard")]


def _gathers(hook: Any) -> bool:
    inside = getattr(hook, "__wrapped__", hook)
    owner = getattr(inside, "__self__", None) or getattr(hook, "__self__", None)
    return type(owner).__module__.startswith("torch.distributed.fsdp")
