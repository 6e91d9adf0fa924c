"""Every term gives one process's loss, gradients and state on two processes that share the images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import make_views
from test_objectives import PROGRESS, TERMS, build
from torch.multiprocessing.spawn import start_processes

from glocal.training.network import StepInput

State = tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]
"""Loss, gradients and the terms' buffers."""


def two_steps(name: str, rank: int, world: int) -> State:
    """Loss, gradients and state of a second step, this process's images being its share of eight."""
    model = build(name)
    for seed in (1, 2):
        views = make_views(8, seed=seed).split(world)[rank]
        model.zero_grad()
        loss, _ = model(StepInput(views, PROGRESS, False))
        loss.backward()
        model.finish_step()
    loss = loss.detach()
    gradients = [p.grad for p in model.student.parameters() if p.grad is not None]
    if world > 1:
        for tensor in (loss, *gradients):
            torch.distributed.all_reduce(tensor)
            tensor /= world
    return loss, gradients, model.objectives.state_dict()


def _work(rank: int, folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    try:
        results = {name: two_steps(name, rank, 2) for name in names}
        if rank == 0:
            torch.save(results, folder / "results.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, State]:
    """What the first of two processes has, for all terms that were asked for, in one start of processes."""
    folder = tmp_path_factory.mktemp("processes")
    asked = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "shared_out" in item.fixturenames
    ]
    start_processes(_work, (folder, asked), nprocs=2, start_method="spawn")
    results: dict[str, State] = torch.load(folder / "results.pt")
    return results


@pytest.mark.parametrize("name", TERMS)
def test_two_processes_equal_one(name: str, shared_out: dict[str, State]) -> None:
    loss, gradients, state = two_steps(name, 0, 1)
    torch.testing.assert_close(shared_out[name][0], loss, rtol=1e-5, atol=1e-6)
    for ours, expected in zip(shared_out[name][1], gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-6)
    for key, value in state.items():
        torch.testing.assert_close(shared_out[name][2][key], value, rtol=1e-4, atol=1e-6, msg=key)
