"""Where the processes of a run come from: this one alone, `speed.devices` of them, torchrun's or srun's.

Importing lightning_fabric costs 1.2 s: it imports torch._dynamo, which imports sympy (0.4 s of it). Only runs pay it.
"""

from __future__ import annotations

import os

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy

from glocal.training.config import SpeedConfig


def launch(speed: SpeedConfig) -> Fabric:
    """Start the other processes of a run, or join those that torchrun or srun started.

    Fabric only launches and places: gradients are averaged by the loop (`distributed.average_`), autocast is the network's.
    """
    _take_numbers_of_srun()
    outside = "RANK" in os.environ
    everywhere = int(os.environ["WORLD_SIZE"]) if outside else speed.devices
    here = int(os.environ.get("LOCAL_WORLD_SIZE", everywhere)) if outside else speed.devices
    fabric = Fabric(
        accelerator=speed.device,
        devices=here,
        num_nodes=everywhere // here,
        strategy=DDPStrategy() if outside or speed.devices > 1 else "auto",
        # Named, because Fabric would take any shell within a SLURM job for one of its tasks, and wait for the others.
        plugins=[TorchElasticEnvironment() if outside else LightningEnvironment()],
    )
    fabric.launch()
    return fabric


def is_first() -> bool:
    """Whether this process is the one that writes; known before anything is launched."""
    _take_numbers_of_srun()
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _take_numbers_of_srun() -> None:
    """Number the tasks of an srun as torchrun numbers its processes.

    A shell within a job has the job's variables too, but no step of several tasks: what it starts is a run of its own.
    """
    task = os.environ
    tasks = int(task.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks == 1 or "RANK" in task:
        return
    nodes = int(task.get("SLURM_STEP_NUM_NODES", task.get("SLURM_NNODES", "1")))
    names = task.get("SLURM_STEP_NODELIST", task.get("SLURM_NODELIST", "127.0.0.1"))
    numbers = {
        "RANK": task["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": task["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "GROUP_RANK": task.get("SLURM_NODEID", "0"),
    }
    # Any port that all tasks can work out; different jobs on a node seldom share it.
    port = 15000 + int(task.get("SLURM_JOB_ID", "0")) % 10000
    meeting = {"MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(names), "MASTER_PORT": str(port)}
    task.update(numbers | {key: task.get(key, value) for key, value in meeting.items()})
