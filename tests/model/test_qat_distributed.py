"""Training in two processes, by DistributedDataParallel and FSDP2, is training in one on the whole batch."""

import copy
import tempfile
from pathlib import Path

import pytest

import qlab

torch = pytest.importorskip("torch")
from torch import distributed, nn  # noqa: E402

from qlab.model.qat_norm import SyncedNorm  # noqa: E402

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="PyTorch without gloo"
)
WAYS = {"averaged": {"decay": 0.8}, "lsq": {"steps": "lsq"}, "pact": {"clip": "pact"}, "synced": {"decay": 0.8}}
STEPS, BATCH = 4, 16
MOMENTA, UNEVEN = (0.2, None), (slice(0, 5), slice(5, BATCH))


def prepared(how: str, group=None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 12), nn.ReLU(), nn.Linear(12, 3)
    )
    with torch.no_grad():
        model[1].running_var.uniform_(0.5, 2)
    if how == "synced":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
    else:
        model[1].eval()  # statistics of one process's share are its own, as ever
    return qlab.prepare_qat(model, qlab.Recipe("int4-channel", qlab.Activations("int4-asym", "static")), **WAYS[how])


def batches() -> list:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, 1, 8, 8, generator=generator) * (i + 1) for i in range(STEPS)]


def train(model: nn.Module, share: slice) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for x in batches():
        optimizer.zero_grad()
        model(x[share]).square().mean().backward()
        optimizer.step()


def normalized(norm: nn.Module, share: slice) -> dict:
    """What two steps of batch normalization of a share make of channels far from zero, and of gradients."""
    generator = torch.Generator().manual_seed(2)
    x, factor = (torch.randn(2, BATCH, 3, 4, 2, generator=generator) for _ in range(2))
    x = (x + torch.tensor([0.0, 30.0, -1000.0]).reshape(3, 1, 1)).requires_grad_()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -0.5]))
        norm.bias.fill_(0.25)
    y = torch.stack([norm(step[share]) for step in x])
    (y * factor[:, share]).sum().backward()
    gradients = {"x": x.grad[:, share], "weight": norm.weight.grad, "bias": norm.bias.grad}
    return {"y": y.detach(), "gradients": gradients, "state": full_state(norm)}


def full_state(model: nn.Module) -> dict:
    values = {
        key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in model.state_dict().items()
    }
    return {key: value.detach().clone() for key, value in values.items()}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh, share, found = init_device_mesh("cpu", (2,)), slice(rank * BATCH // 2, (rank + 1) * BATCH // 2), {}
        group = distributed.new_group([0, 1])
        for how in WAYS:
            model = nn.parallel.DistributedDataParallel(prepared(how, group))
            train(model, share)
            found["ddp", how] = full_state(model.module)
            found["ddp converted", how] = qlab.convert(model, show=False).state_dict()
            model = prepared(how, group)
            for index in (0, 4, 6):
                fully_shard(model[index], mesh=mesh)
            fully_shard(model, mesh=mesh)
            train(model, share)
            found["fsdp", how] = full_state(model)
            with pytest.raises(ValueError, match="spread over processes; gather them"):
                qlab.convert(model)
        for momentum in MOMENTA:
            found["norm", momentum] = normalized(SyncedNorm(nn.SyncBatchNorm(3, momentum=momentum)), UNEVEN[rank])
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results() -> list:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(worker, (folder,), nprocs=2)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_do_what_one_does(results, kind, how):
    model = prepared(how)
    untrained = copy.deepcopy(model.state_dict())
    train(model, slice(None))
    expected = full_state(model)
    for found in results:
        assert found[kind, how].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[kind, how][key], value, rtol=1e-4, atol=1e-5, msg=f"{kind} {how} {key}")
    moved = [key for key, value in expected.items() if not torch.equal(value, untrained[key])]
    assert any("weight" in key for key in moved)
    assert any("change" in key or "lowest" in key for key in moved)


@pytest.mark.parametrize("how", WAYS)
def test_all_processes_convert_to_the_same_bytes(results, how):
    first, second = (found["ddp converted", how] for found in results)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    loaded = prepared(how)
    loaded.load_state_dict(results[0]["fsdp", how])
    again = qlab.convert(loaded, show=False).state_dict()
    assert again.keys() == first.keys()


@pytest.mark.parametrize("momentum", MOMENTA)
def test_shares_are_normalized_as_the_whole_batch_is(results, momentum):
    first, second = (found["norm", momentum] for found in results)
    whole = normalized(nn.BatchNorm2d(3, momentum=momentum), slice(None))  # PyTorch's own

    def check(found, wanted):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

    check(torch.cat([first["y"], second["y"]], 1), whole["y"])
    check(torch.cat([first["gradients"].pop("x"), second["gradients"].pop("x")], 1), whole["gradients"].pop("x"))
    for key, gradient in whole["gradients"].items():
        check(first["gradients"][key] + second["gradients"][key], gradient)
    for key, value in whole["state"].items():
        check(first["state"][key], value)
        assert torch.equal(first["state"][key], second["state"][key])


def test_it_does_not_matter_when_norms_are_converted():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    before = qlab.prepare_qat(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)), "weight_only_int8")
    after = nn.SyncBatchNorm.convert_sync_batchnorm(qlab.prepare_qat(model, "weight_only_int8"))
    assert isinstance(before[0].norm, SyncedNorm)
    assert isinstance(after[0].norm, nn.SyncBatchNorm)
    elsewhere = copy.deepcopy(before[0].norm).to("meta")
    assert elsewhere(torch.empty(2, 4, 5, 5, device="meta")).shape == (2, 4, 5, 5)  # by PyTorch's own
    assert before.state_dict().keys() == after.state_dict().keys()
    x = batches()[0]
    assert torch.equal(before(x), after(x))
    assert torch.equal(qlab.convert(before, show=False)(x), qlab.convert(after, show=False)(x))
