"""How a training step is computed: processes, precision, chunks of a contrastive batch, learning-rate schedule."""

from asymcir_training.engine.batch_norm import check_batch_norms, synchronise_batch_norms
from asymcir_training.engine.contrastive_step import contrastive_backward
from asymcir_training.engine.execution import Execution, pick, sample_rows
from asymcir_training.engine.precision import Precision
from asymcir_training.engine.processes import Processes, start_processes, stop_processes
from asymcir_training.engine.schedule import cosine_schedule, parameter_groups, seed_of_step

__all__ = [
    "Execution",
    "Precision",
    "Processes",
    "check_batch_norms",
    "contrastive_backward",
    "cosine_schedule",
    "parameter_groups",
    "pick",
    "sample_rows",
    "seed_of_step",
    "start_processes",
    "stop_processes",
    "synchronise_batch_norms",
]
