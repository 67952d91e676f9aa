"""Batch norms in a run on several processes, whose statistics must be those of a run on one.

On CUDA they take them over all processes (`torch.nn.SyncBatchNorm`); torch has nothing of the kind on the CPU, so there
a model whose batch norms train is refused.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from asymcir_training.engine.processes import Processes
from asymcir_training.errors import ConfigError

_NAMED = 3


def check_batch_norms(model: nn.Module, processes: Processes) -> None:
    """Refuse batch norms in training mode where several processes compute on the CPU.

    Raises:
        ConfigError: names some of them, and the ways out.
    """
    if processes.world == 1 or processes.device.type == "cuda":
        return
    found = [name or "itself" for name, part in model.named_modules() if isinstance(part, _BatchNorm) and part.training]
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise ConfigError(
            f"the batch norms of this {type(model).__name__} ({', '.join(found[:_NAMED])}{more}) would train with the "
            f"statistics of one of {processes.world} CPU processes: take one process, freeze them (`frozen`), choose a "
            "backbone without batch norms, or train on CUDA, where they are synchronised"
        )


def synchronise_batch_norms(model: nn.Module, processes: Processes) -> None:
    """Let the batch norms inside a model take their statistics over all processes, in place.

    Parameters, buffers and the keys of the state dict stay, so a state loads into the plain model and back, and an
    optimiser made before goes on. Hooks on a batch norm are lost: register them afterwards.

    Raises:
        ConfigError: see `check_batch_norms`.
    """
    check_batch_norms(model, processes)
    converted = any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())
    if processes.world > 1 and processes.device.type == "cuda" and not converted:
        # timm's keeps the activation inside its own batch norms, which torch's conversion would drop; it makes
        # nn.SyncBatchNorm of the others.
        convert_sync_batchnorm(model)


@contextmanager
def still_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context, forward passes in training mode leave the running statistics as they are."""
    # Not momentum 0: the number of batches would still advance, and a momentum of None means a plain mean.
    tracking = [
        part
        for module in modules
        for part in module.modules()
        if isinstance(part, _NormBase) and part.training and part.track_running_stats
    ]
    for part in tracking:
        part.track_running_stats = False
    try:
        yield
    finally:
        for part in tracking:
            part.track_running_stats = True
