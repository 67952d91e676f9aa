"""EmojiCIR: composed and sketch queries on emoji with ground truth, its rules, data set and evaluation."""

from asymcir_benchmarks.emojicir.catalogue import Catalogue
from asymcir_benchmarks.emojicir.dataset import EmojiCir
from asymcir_benchmarks.emojicir.evaluate import Evaluation, evaluate_pictures, evaluate_triplets, read_triplets
from asymcir_benchmarks.emojicir.goals import Goal, cost_goals, split_goals
from asymcir_benchmarks.emojicir.protocol import SplitReport, build_galleries, evaluate_emojicir
from asymcir_benchmarks.emojicir.rows import read_rows
from asymcir_benchmarks.emojicir.rules import Triplet, derive_triplets

__all__ = [
    "Catalogue",
    "EmojiCir",
    "Evaluation",
    "Goal",
    "SplitReport",
    "Triplet",
    "build_galleries",
    "cost_goals",
    "derive_triplets",
    "evaluate_emojicir",
    "evaluate_pictures",
    "evaluate_triplets",
    "read_rows",
    "read_triplets",
    "split_goals",
]
