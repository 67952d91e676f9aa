"""The processes that a run is spread over, and their devices.

One process is the plain case and needs no launcher. Many are started by torchrun, one per GPU (or per CPU share); each
holds the whole model and an equal, contiguous part of the batch.

Notation: b rows of this process.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous

from asymcir_training.errors import ConfigError

# What torchrun sets; the first three say that it was there at all.
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_MEETING_PLACE = ("MASTER_ADDR", "MASTER_PORT")
_MEETING_TIME = timedelta(minutes=5)
# The main process may spend hours on the teacher cache while the others wait for it. A process that died is torchrun's
# to notice: it ends the others.
_PATIENCE = timedelta(hours=24)
# Few large messages instead of one per parameter; small enough that the copy does not show in memory.
_BUCKET_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """This process among those of the run. Its default is a run of one process on the CPU.

    All methods that exchange something must be called by all processes, in the same order.

    Attributes:
        rank: number of this process in the run.
        world: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and logs."""
        return self.rank == 0

    def gather(self, x: Tensor) -> Tensor:
        """Put the rows of all processes together: [b, ...], b the same everywhere -> [world * b, ...], no gradient."""
        x = x.detach()
        if self.world == 1:
            return x
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.world)]
        distributed.all_gather(parts, x)
        return torch.cat(parts)

    def sum(self, x: Tensor) -> Tensor:
        """Add a tensor of equal shape up over the processes, no gradient."""
        x = x.detach()
        if self.world == 1:
            return x
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each parameter's gradient by its sum over the processes.

        A gradient that only some processes have counts as zero in the others; one that no process has stays None, so
        that an optimiser skips that parameter as it does in one process.
        """
        if self.world == 1:
            return
        trained = [value for value in dict.fromkeys(parameters) if value.requires_grad]
        present = self.sum(torch.tensor([value.grad is not None for value in trained], device=self.device).int())
        for bucket in _buckets([value for value, count in zip(trained, present.tolist(), strict=True) if count]):
            for value in bucket:
                if value.grad is None:
                    value.grad = torch.zeros_like(value)
            gradients = [value.grad for value in bucket if value.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view(gradient.shape))

    @torch.no_grad()
    def broadcast(self, module: nn.Module) -> None:
        """Give the module the main process's parameters and buffers."""
        if self.world == 1:
            return
        for value in (*module.parameters(), *module.buffers()):
            sent = value.detach().contiguous()  # a channels-last weight is not, and gloo refuses it
            distributed.broadcast(sent, src=0)
            value.copy_(sent)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            distributed.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def share_object(self, value: Any) -> Any:
        """Return the main process's value; the others' is not looked at. Whatever pickle can carry."""
        if self.world == 1:
            return value
        carried = [value]
        distributed.broadcast_object_list(carried, src=0, device=self.device)
        return carried[0]


def start_processes(device: str = "auto") -> Processes:
    """Join the processes that torchrun started, over NCCL on CUDA and gloo on the CPU; without torchrun, be the one.

    Args:
        device: "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", or "cuda:N" for a run of one process.

    Raises:
        ConfigError: a device that is not there, fewer GPUs than processes, an environment that is only half torchrun's,
            or processes that do not meet within five minutes.
    """
    found = {name: os.environ[name] for name in (*_RANKS, *_MEETING_PLACE) if os.environ.get(name)}
    if not any(name in found for name in _RANKS):
        return Processes(device=_choose_device(device, local_rank=0, local_world=1))
    missing = [name for name in (*_RANKS, *_MEETING_PLACE) if name not in found]
    if missing:
        raise ConfigError(
            f"expected all of torchrun's variables or none, got {', '.join(found)} without {', '.join(missing)}: start "
            f"with `torchrun --nproc-per-node N`, or unset {', '.join(name for name in _RANKS if name in found)}"
        )
    rank, world, local_rank = (_whole_number(name, found[name]) for name in _RANKS)
    if not 0 <= rank < world or local_rank < 0:
        raise ConfigError(f"expected RANK from 0 to WORLD_SIZE - 1, got RANK {rank} of WORLD_SIZE {world}")
    local_world = _whole_number("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_WORLD_SIZE") or str(local_rank + 1))
    chosen = _choose_device(device, local_rank=local_rank, local_world=local_world)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1 and not distributed.is_initialized():
        _meet(rank, world, chosen)
    return Processes(rank=rank, world=world, device=chosen)


def stop_processes() -> None:
    """Leave the other processes; nothing to do in a run of one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _choose_device(asked: str, *, local_rank: int, local_world: int) -> torch.device:
    """Choose this process's device.

    Args:
        asked: as for `start_processes`.
        local_rank, local_world: number of this process and of all processes on this machine.
    """
    kind, _, index = asked.partition(":")
    if kind not in {"auto", "cpu", "cuda"} or (index and not (kind == "cuda" and index.isdecimal())):
        raise ConfigError(f'expected the device "auto", "cpu", "cuda" or "cuda:N", got {asked!r}')
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not gpus):
        return torch.device("cpu")
    if not gpus:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise ConfigError(
            f"the device {asked!r} was asked for, and torch {torch.__version__} ({built}) sees no GPU here: install a "
            "driver or a torch that fits it, or ask for the device cpu"
        )
    if index and local_world > 1:
        raise ConfigError(f"the device {asked!r} was asked for by {local_world} processes: ask for cuda, one GPU each")
    if local_world > gpus or (index and int(index) >= gpus):
        wanted = f"the device {asked!r}" if index else f"{local_world} processes with one GPU each"
        raise ConfigError(f"expected {wanted}, and torch sees {gpus} GPU(s) here: lower --nproc-per-node or the number")
    return torch.device("cuda", int(index) if index else local_rank)


def _meet(rank: int, world: int, device: torch.device) -> None:
    try:
        # Rendezvous and collectives have different patience, and init_process_group takes one for both.
        store, _, _ = next(iter(rendezvous("env://", rank, world, timeout=_MEETING_TIME)))
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=_PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as exc:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(
            f"process {rank} of {world} did not meet the others at {place}: {exc}; check that all were started and can "
            "reach that address"
        ) from exc


def _whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as exc:
        raise ConfigError(f"expected a whole number in the variable {name}, got {text!r}") from exc


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Group parameters of one dtype, in order, up to the bucket size."""
    bucket: list[nn.Parameter] = []
    size_bytes = 0
    for value in parameters:
        value_bytes = value.numel() * value.element_size()
        if bucket and (size_bytes + value_bytes > _BUCKET_BYTES or bucket[0].dtype != value.dtype):
            yield bucket
            bucket, size_bytes = [], 0
        bucket.append(value)
        size_bytes += value_bytes
    if bucket:
        yield bucket
