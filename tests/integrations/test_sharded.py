"""A model that `fully_shard` has spread, whole for a while; in one process, which has all parts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor

from curate.errors import UserError
from curate.integrations.sharded import gathered, group_of, is_sharded, part_like
from curate.integrations.training import LiveTraining
from curate.rules import whole
from tests.integrations.loop import net


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[object]:
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def spread(mesh: object) -> nn.Module:
    model = net()
    for layer in (model[0], model[3], model):
        fully_shard(layer, mesh=mesh)
    return model


def test_a_model_in_one_piece_is_as_it_is() -> None:
    model = net()
    assert not is_sharded(model)
    assert group_of(model) is None
    p = model[0].weight
    assert whole(p) is p
    assert part_like(p, p) is p


def test_parameters_are_whole_in_the_block_alone(mesh: object) -> None:
    model, alike = spread(mesh), net()
    assert is_sharded(model)
    x = torch.ones(3, 6)
    for p in model.parameters():
        assert torch.equal(whole(part_like(torch.ones(p.shape), p)), torch.ones(p.shape))
    with gathered(model):
        assert not any(hasattr(p, "full_tensor") for p in model.parameters())
        model.eval()
        assert torch.equal(model(x), alike.eval()(x))
    assert all(hasattr(p, "full_tensor") for p in model.parameters())
    model(x).sum().backward()  # its own hooks are there again
    assert all(hasattr(p.grad, "full_tensor") for p in model.parameters())


def test_what_trains_is_read_whole(mesh: object) -> None:
    model = spread(mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    training = LiveTraining(model, optimizer)
    flat, live = training.read()
    assert flat.names == tuple(name for name, _ in net().named_parameters())
    assert torch.equal(live.state().theta, torch.cat([p.flatten() for p in net().parameters()]))
    for leaf in training.leaves().values():
        assert not hasattr(leaf, "full_tensor")


def test_what_cannot_be_gathered_is_refused(mesh: object) -> None:
    model = net()
    plain = model[0].weight
    model[0].weight = nn.Parameter(distribute_tensor(plain.detach(), mesh))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"parameter 0\.weight is a DTensor, spread .* otherwise"):
        is_sharded(model)

    class FullyShardedDataParallel(nn.Linear):
        pass

    with pytest.raises(UserError, match="FullyShardedDataParallel flattens weights"):
        is_sharded(nn.Sequential(FullyShardedDataParallel(2, 2)))
    half = net()
    fully_shard(half, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="computes in another precision than it keeps"):
        LiveTraining(half, torch.optim.SGD(half.parameters(), lr=0.1))
