"""The backward pass of losses that contrast a whole batch, where the batch is larger than one process's memory.

In-batch contrasts need the representations of all pictures at once, but not the activations behind them. So the batch
is spread over processes, and over chunks within each: representations are computed chunk by chunk without a graph and
put together; the losses' gradient with respect to them is kept; then each chunk is computed again, with a graph, and
its rows of that gradient are sent back through it. The result is that of one large batch, for a second forward pass.

Notation: b_c rows of a chunk, B rows of the global batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from asymcir_training.engine.batch_norm import still_statistics
from asymcir_training.engine.precision import Precision
from asymcir_training.engine.processes import Processes
from asymcir_training.errors import DataError, TrainingError

Chunk = TypeVar("Chunk")

# Kernels that are not deterministic change the last bits of a bf16; another draw of dropout changes everything.
_REPEAT_TOLERANCE = 0.05
_SEEDS = 2**62


def chunk_rows(batch: int, *, chunks: int, processes: Processes) -> list[slice]:
    """Split the rows of this process's part of the global batch into equal chunks.

    Raises:
        DataError: the batch does not split evenly over processes and chunks.
    """
    if batch < 1 or chunks < 1 or batch % (processes.world * chunks):
        raise DataError(
            f"expected a batch that splits evenly over {processes.world} process(es) x {chunks} chunk(s), a multiple "
            f"of {processes.world * max(1, chunks)}, got {batch}"
        )
    rows = batch // (processes.world * chunks)
    return [slice(start, start + rows) for start in range(0, rows * chunks, rows)]


def contrastive_backward(
    represent: Callable[[Chunk], Mapping[str, Tensor]],
    chunks: Sequence[Chunk],
    losses: Callable[[dict[str, Tensor]], Mapping[str, tuple[float, Tensor]]],
    *,
    modules: Sequence[nn.Module],
    processes: Processes,
    precision: Precision,
) -> dict[str, float]:
    """Add the gradient of losses over the global batch to the modules' parameters.

    One chunk costs one forward pass; several cost a second one, and hold the activations of one chunk at a time.
    Gradients equal those of one process with one chunk, except through batch statistics: a batch norm sees chunk by
    chunk (of all processes, on CUDA), and its running statistics advance once per chunk.

    What `represent` draws from torch's generators is seeded by the chunk's number in the global batch: it comes out the
    same in both passes, differs between processes, and 2 processes x 2 chunks draw what 1 process x 4 chunks draw.

    Args:
        represent: chunk -> name -> [b_c, ...], with a graph, under autocast. A loss of single samples is a
            representation too: return it as [b_c] and average it in `losses`. Whatever needs no gradient is better
            left to `losses`, which can look it up for the global batch.
        chunks: this process's part of the batch, in order; as many, of as many rows, in every process.
        losses: representations of the global batch [B, ...] in its order, fp32 -> name -> (weight, scalar). Every
            process computes them, so its draws must not differ: seed torch alike in all processes.
        modules: whatever has trained parameters in `represent` or `losses`, and the batch norms of `represent`;
            without gradients at the call, since those that are there are added up over processes too.
        processes, precision: of the run. Gradients are scaled by `precision.scaler`: go on with `precision.step`.

    Returns:
        "loss", the weighted sum, and each loss by its name; the same in all processes.

    Raises:
        TrainingError: `represent` gave no rows, no gradient, or another answer the second time.

    Source: Gao et al., 2021, "Scaling deep contrastive learning batch size under memory limited setup" (GradCache).
    """
    first_seed = int(torch.randint(_SEEDS, ()).item()) + processes.rank * len(chunks)

    def run(number: int) -> dict[str, Tensor]:
        with _seeded(first_seed + number, processes.device), precision.autocast():
            return _check_rows(represent(chunks[number]))

    once = len(chunks) == 1
    if once:
        held = [run(0)]
    else:
        with torch.no_grad(), still_statistics(modules):
            held = [run(number) for number in range(len(chunks))]
    gathered = {name: processes.gather(torch.cat([_widen(part[name]) for part in held])) for name in held[0]}
    for name, value in gathered.items():
        value.requires_grad_(held[0][name].requires_grad if once else value.is_floating_point())
    figures, gradients = _differentiate(losses, gathered, processes, precision)

    start = processes.rank * (len(next(iter(gathered.values()))) // processes.world)
    changes = []
    for number in range(len(chunks)):
        again = held[0] if once else run(number)
        rows = slice(start, start + len(next(iter(again.values()))))
        _send_back(again, {name: value[rows] for name, value in gradients.items()})
        if not once:
            changes.append(_change(held[number], again))
        start = rows.stop
        del again  # or the graph of this chunk would live on beside the next one's
    processes.reduce_gradients(value for module in modules for value in module.parameters())
    _check_repeated(changes)
    return dict(zip(figures, torch.stack([*figures.values()]).tolist(), strict=True))


def _differentiate(
    losses: Callable[[dict[str, Tensor]], Mapping[str, tuple[float, Tensor]]],
    gathered: dict[str, Tensor],
    processes: Processes,
    precision: Precision,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute the losses and their scaled gradient with respect to the representations [B, ...] that take one."""
    with torch.autocast(processes.device.type, enabled=False):
        found = losses(gathered)
        total = torch.stack([weight * value for weight, value in found.values()]).sum()
    inputs = {name: value for name, value in gathered.items() if value.requires_grad}
    if not total.requires_grad:
        raise TrainingError("the losses depend on nothing that is trained: expected a representation with a gradient")
    scaled = precision.scaler.scale(total)
    if processes.is_main:
        torch.autograd.backward(scaled)  # reaches parameters of the losses too, a temperature for one
        gradients = {name: value.grad for name, value in inputs.items()}
    else:  # ... whose gradient every process has alike, so that it may be added up only once
        found_gradients = torch.autograd.grad(scaled, [*inputs.values()], allow_unused=True) if inputs else ()
        gradients = dict(zip(inputs, found_gradients, strict=True))
    figures = {"loss": total.detach()} | {name: value.detach() for name, (_, value) in found.items()}
    return figures, {name: value for name, value in gradients.items() if value is not None}


def _send_back(representations: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    taken = [name for name, value in representations.items() if value.requires_grad and name in gradients]
    if not taken:
        raise TrainingError(
            f"none of the representations {', '.join(representations)} has a gradient: expected `represent` to run "
            "something that is trained, and `losses` to use it"
        )
    torch.autograd.backward(
        [representations[name] for name in taken],
        [gradients[name].to(representations[name].dtype) for name in taken],
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch within this context; what is drawn after it is as if nothing had been drawn in it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _check_rows(representations: Mapping[str, Tensor]) -> dict[str, Tensor]:
    counts = {name: len(value) if value.ndim else 0 for name, value in representations.items()}
    if not counts or 0 in counts.values() or len({*counts.values()}) > 1:
        raise TrainingError(f"expected representations with one row per sample of the chunk, got rows {counts}")
    return dict(representations)


def _widen(value: Tensor) -> Tensor:
    return value.detach().float() if value.is_floating_point() and value.dtype != torch.float64 else value.detach()


def _change(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    """Return the largest distance between two answers, relative to the first's length, without waiting for it."""
    distances = [
        (_widen(second[name]) - _widen(value)).norm() / _widen(value).norm().clamp_min(1e-12)
        for name, value in first.items()
        if value.is_floating_point()
    ]
    return torch.stack(distances).amax()


def _check_repeated(changes: Sequence[Tensor]) -> None:
    change = float(torch.stack([*changes]).amax()) if changes else 0.0
    if change > _REPEAT_TOLERANCE:  # not of NaN: a loss that overflowed is the loop's to report
        raise TrainingError(
            f"`represent` gave another answer the second time, {change:.0%} away, so its gradients would be wrong: let "
            "it draw from torch's generators only and keep no state"
        )
