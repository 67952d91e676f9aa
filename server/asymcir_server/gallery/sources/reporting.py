"""What a build says at its end: how much was taken, and why the rest was not."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from asymcir_common.places import Rejected

from asymcir_server.gallery.sources.duplicates import DUPLICATES_NAME, Duplicates

QUARANTINE_NAME = "quarantine.jsonl"
MAX_REASONS = 100
"""Kinds of reasons that are counted one by one; further ones are counted together."""

_OTHER = "other reasons"
_SHOWN = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What was built.

    Attributes:
        snapshot: its folder.
        version: its number, as answers name it.
        target: its target type.
        size: N, pictures in it.
        encoded: pictures that went through the visual encoder; the other vectors were there from earlier builds.
        quarantined: pictures put aside.
        quarantined_by_reason: kind of reason, without names and numbers -> pictures, the most frequent first.
        quarantined_examples: kind of reason -> the path of one of them.
        passed_over: suffix -> files of folders and archives that are not taken for pictures.
        passed_over_examples: suffix -> one of them.
        left_out: rule -> hidden files and folders, junk (a folder as one), and pictures that a pattern leaves out.
        duplicates: exact ones, and near ones where they were asked for.
        index_kind: its index.
        index_recall_at_10: measured against brute force.
        elapsed_s: wall clock.
        changes_before: pictures added to the snapshot before, removed from it, and given other metadata, since it was
            written; they are in the new one as far as the sources hold them.
        noted: what was assumed of pictures when they were decoded, by kind -> pictures; see `decode_image`.
        noted_examples: kind -> the path of one of them.
    """

    snapshot: Path
    version: str
    target: str
    size: int
    encoded: int
    quarantined: int
    quarantined_by_reason: Mapping[str, int]
    passed_over: Mapping[str, int]
    duplicates: Duplicates
    index_kind: str
    index_recall_at_10: float
    elapsed_s: float
    quarantined_examples: Mapping[str, str] = field(default_factory=dict)
    passed_over_examples: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    changes_before: tuple[int, int, int] = (0, 0, 0)
    noted: Mapping[str, int] = field(default_factory=dict)
    noted_examples: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What a build would look at, found without reading a picture.

    Attributes:
        pictures: that it would try to take.
        quarantined, quarantined_by_reason, quarantined_examples: what is known already to be unusable; see BuildReport.
        passed_over, passed_over_examples, left_out: see BuildReport.
    """

    pictures: int
    quarantined: int
    quarantined_by_reason: Mapping[str, int]
    quarantined_examples: Mapping[str, str]
    passed_over: Mapping[str, int]
    passed_over_examples: Mapping[str, str]
    left_out: Mapping[str, int]


class ReasonCounts:
    """Counts rejected pictures by the kind of their reason: its text without names and numbers."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self.examples: dict[str, str] = {}

    def add(self, item: Rejected) -> None:
        """Count one."""
        reason = item.reason
        for name in sorted({item.path, item.id, Path(item.path).name}, key=len, reverse=True):
            if name:
                reason = reason.replace(name, "it")
        kind = re.sub(r"\d+", "N", reason)
        if kind not in self._counts and len(self._counts) >= MAX_REASONS:
            kind = _OTHER
        self._counts[kind] += 1
        self.examples.setdefault(kind, item.path or item.id)

    def most_common(self) -> dict[str, int]:
        """Return kind -> count, the most frequent first."""
        return dict(self._counts.most_common())


def write_rejected(stream: TextIO, item: Rejected) -> None:
    """Append a line to `quarantine.jsonl`."""
    record = {"id": item.id, "path": item.path, "reason": item.reason}
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")
    stream.write(f"{line}\n")


def describe_report(report: BuildReport) -> Iterator[str]:
    """Yield the lines that `asymcir gallery build` prints."""
    yield (
        f"{report.snapshot}: {report.size} pictures as {report.target}, {report.quarantined} quarantined, "
        f"index {report.index_kind}, recall@10 {report.index_recall_at_10:.3f}, {report.elapsed_s:.1f} s"
    )
    if report.encoded < report.size:
        yield f"encoded: {report.encoded}; the vectors of the others were there already"
    yield from _describe_passed_over(report)
    if any(report.changes_before):
        added, removed, updated = report.changes_before
        yield (
            f"the changes to the snapshot before ({added} added, {removed} removed, {updated} updated) are in "
            "this one as far as its sources hold them; `asymcir gallery rollback` goes back to it"
        )
    yield from _describe_left_out(report)
    duplicates = report.duplicates
    if duplicates.exact or duplicates.near:
        near = "" if duplicates.near is None else f", {duplicates.near} look like an earlier one"
        example = " = ".join(duplicates.examples[0][:_SHOWN])
        yield f"duplicates: {duplicates.exact} pictures have the same file as an earlier one{near}; such as {example}"
        yield f"duplicates, all of them: {report.snapshot / DUPLICATES_NAME}"
    for kind, count in list(report.noted.items())[:_SHOWN]:
        yield f"{count} read with a note: {kind} (such as {_shown(report.noted_examples.get(kind, ''))})"
    yield from _describe_reasons(report)
    if report.quarantined:
        yield f"put aside, with the reason: {report.snapshot / QUARANTINE_NAME}"


def describe_plan(plan: BuildPlan) -> Iterator[str]:
    """Yield the lines that `asymcir gallery build --dry-run` prints."""
    yield f"{plan.pictures} pictures would be read, {plan.quarantined} put aside; nothing was written"
    yield from _describe_passed_over(plan)
    yield from _describe_left_out(plan)
    yield from _describe_reasons(plan)


def _describe_passed_over(report: BuildReport | BuildPlan) -> Iterator[str]:
    if report.passed_over:
        named = [
            f"{count} {suffix or '(no suffix)'} (such as {_shown(report.passed_over_examples.get(suffix, ''))})"
            for suffix, count in report.passed_over.items()
        ]
        more = f" and {len(named) - _SHOWN} more suffixes" if len(named) > _SHOWN else ""
        yield f"passed over, not taken for pictures: {', '.join(named[:_SHOWN])}{more}"


def _describe_left_out(report: BuildReport | BuildPlan) -> Iterator[str]:
    if report.left_out:
        counted = ", ".join(f"{count} {rule}" for rule, count in list(report.left_out.items())[:_SHOWN])
        yield f"left out by name: {counted}"


def _describe_reasons(report: BuildReport | BuildPlan) -> Iterator[str]:
    for kind, count in list(report.quarantined_by_reason.items())[:_SHOWN]:
        yield f"{count} put aside: {kind} (such as {_shown(report.quarantined_examples.get(kind, ''))})"


def _shown(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in name)
