"""Several processes: how they meet, again after a restart, and how they part."""

import gc
import os
from datetime import timedelta
from typing import Any

import torch
from mmengine.dist import is_distributed
from torch import distributed

#: Launcher -> a variable that it sets, and the command that sets it.
STARTED_BY = {
    "pytorch": ("RANK", "torchrun --nproc-per-node=N tools/train.py ..."),
    "slurm": ("SLURM_PROCID", "srun python tools/train.py ..."),
    "mpi": ("OMPI_COMM_WORLD_LOCAL_RANK", "mpirun -n N python tools/train.py ..."),
}


def meeting(env_cfg: dict[str, Any], launcher: str) -> dict[str, Any]:
    """``env_cfg`` with what processes of torchrun need to meet.

    Without a GPU they take gloo. After a restart on one machine they meet under a name of its own:
    torchrun keeps the addresses of the processes before it, dead as they are (pytorch issue 135712;
    on several machines set ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``).

    Args:
        env_cfg: of the config.
        launcher: of the config; all but ``pytorch`` change nothing.

    Raises:
        ValueError: the launcher has not started this process.
    """
    variable, command = STARTED_BY.get(launcher, ("", ""))
    if variable and variable not in os.environ and not is_distributed():
        raise ValueError(
            f"--launcher {launcher}: {variable} is not set, so nothing started this process as one "
            f"of several; start it by {command} or leave --launcher out (docs/distributed.md)"
        )
    if launcher != "pytorch" or is_distributed():
        return env_cfg
    found = dict(env_cfg.get("dist_cfg") or {})
    restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if restart and os.environ.get("GROUP_WORLD_SIZE") == "1":
        store, rank, world_size = next(distributed.rendezvous("env://"))
        found["store"] = distributed.PrefixStore(f"restart {restart}", store)
        found.update(rank=rank, world_size=world_size)
    if not torch.cuda.is_available():
        seconds = found.get("timeout")
        known = {k: v for k, v in found.items() if k in ("store", "rank", "world_size")}
        known["timeout"] = None if seconds is None else timedelta(seconds=seconds)
        distributed.init_process_group("gloo", **known)
    return {**env_cfg, "dist_cfg": found}


def part() -> None:
    """Wait for the other processes of a run, then leave them; alone it does nothing.

    Call it when nothing holds the runner any more: threads of gloo live as long as a model that
    they serve, and one that outlives the interpreter ends the program by SIGABRT now and then.
    """
    if is_distributed():
        gc.collect()
        distributed.barrier()
        distributed.destroy_process_group()
        gc.collect()
