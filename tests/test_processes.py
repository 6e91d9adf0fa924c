"""Runs in processes of their own: every signal ends in a checkpoint, two processes are the run of one, however started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_runs import (
    checkpoint,
    config_for,
    noisy_pictures,
    records,
    start_elsewhere,
    stop_after,
    wait_for_records,
)

from glocal.training.loop import pretrain
from glocal.training.processes import is_first
from glocal.training.stopping import SIGNALS, stop_requested

ENDLESS = "training.steps=100000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_pictures(tmp_path_factory.mktemp("images"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes], seconds: float = 90) -> str:
    """What it said, after it ended without an error."""
    _, said = process.communicate(timeout=seconds)
    assert process.returncode == 0, said.decode()[-3000:]
    return str(said.decode())


@pytest.fixture(autouse=True)
def signals_are_not_ignored() -> Iterator[None]:
    """Under nohup SIGHUP is, in a script's background SIGINT, by this process and by all that it starts."""
    before = {
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_every_signal_raises_the_flag_and_handlers_come_back() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        with stop_requested() as stop:
            os.kill(os.getpid(), number)
            stop.post(stop.raised(torch.device("cpu")))
            assert stop.agreed() and not stop._posted
    assert {signal.Signals(n).name for n in SIGNALS} == {"SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"}
    assert before == {number: signal.getsignal(number) for number in SIGNALS}


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requested() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.agreed()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_ends_the_process_at_once() -> None:
    child = os.fork()
    if child == 0:
        with stop_requested():
            time.sleep(60)
            time.sleep(60)
        os._exit(0)
    for _ in range(2):
        time.sleep(0.3)
        os.kill(child, signal.SIGINT)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT


def test_hangup_to_the_whole_group_saves_and_ends_cleanly(folder: Path, tmp_path: Path) -> None:
    """As a closed terminal or a scheduler sends it: to the run and to its workers."""
    out = tmp_path / "run"
    process = start_elsewhere(config_for(folder, out, ENDLESS, "speed.workers=1"), tmp_path / "plan")
    wait_for_records(process, out)
    os.killpg(process.pid, signal.SIGHUP)
    said = end(process)
    assert "resume=true continues" in said and "Traceback" not in said
    assert checkpoint(out)["step"] > 0


def test_two_nodes_are_the_run_of_one_process_and_stop_together(folder: Path, tmp_path: Path) -> None:
    """Two torchruns of one process each, without speed.devices: the losses of one process; then a signal to the second
    ends both within a step, far from any record, with one checkpoint.
    """
    dropped = "views.global.keep_patches=0.5"
    more = (ENDLESS, "backbone.drop_path=0", "training.log_every=2", "optimiser.kind=muon", dropped)
    stop_after(4)
    try:
        one = pretrain(config_for(folder, tmp_path / "one", *more))
    finally:
        stop_after(None)
    port, out = free_port(), tmp_path / "two"
    processes = [
        start_elsewhere(
            config_for(folder, out, *more),
            tmp_path / "plan",
            command=(
                "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={node}", "--nproc-per-node=1",
                "--master-addr=127.0.0.1", f"--master-port={port}",
            ),
        )
        for node in (0, 1)
    ]  # fmt: skip
    wait_for_records(processes[0], out, count=2)
    # torchrun gives its processes a session of their own and dies of USR1 itself, so the one below it is told.
    below = Path(f"/proc/{processes[1].pid}/task/{processes[1].pid}/children").read_text().split()
    os.kill(int(below[0]), signal.SIGUSR1)
    said = [end(process) for process in processes]
    assert "resume=true continues" in said[0] and "broadcast_buffers" not in said[0]
    assert checkpoint(out)["step"] >= 4
    for a, b in zip(records(one), records(out)[:2], strict=True):
        for key in ("loss", "image", "patch", "gradient_norm"):
            assert a[key] == pytest.approx(b[key], rel=1e-4), (a["step"], key)


def test_tasks_of_srun_are_numbered_and_a_shell_in_the_job_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that srun sets in the fourth task of a step over two nodes."""
    job = {
        "SLURM_JOB_ID": "123456", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "gpu[07-08]",
        "SLURM_NODELIST": "gpu[07-08]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    }  # fmt: skip
    step = {
        "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08]",
    }  # fmt: skip
    # So that what is set on the way is taken away again.
    numbers = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    for key, value in (dict.fromkeys(numbers, "") | job).items():
        monkeypatch.setenv(key, value)
    for key in numbers:
        monkeypatch.delenv(key)
    assert is_first() and "RANK" not in os.environ
    for key, value in step.items():
        monkeypatch.setenv(key, value)
    assert not is_first()
    assert [os.environ[key] for key in numbers] == ["3", "4", "1", "2", "1", "gpu07", "18456"]
