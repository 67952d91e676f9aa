"""A triplet of files: a picture, the change typed with it, and the picture or pictures that answer."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureTriplet:
    """A picture, the change typed with it, and the picture that answers.

    Attributes:
        reference: the query picture, a photo or a sketch.
        modifier: the change; empty where the picture alone asks.
        target: the picture that training pulls the query to.
        targets: further right answers, which evaluation accepts as well.
        excluded: pictures that evaluation takes out of the ranking, beside the reference: other views of it.
        identity: the record's own name in its file, empty where it has none.
        where: the list and the line or number of its record, for messages.
        concept: what the target shows; targets of one concept are no wrong answers to each other. Empty: itself alone.
    """

    reference: Path
    modifier: str
    target: Path
    targets: tuple[Path, ...] = ()
    excluded: tuple[Path, ...] = ()
    identity: str = ""
    where: str = field(default="", compare=False)
    concept: str = ""

    @property
    def answers(self) -> tuple[Path, ...]:
        """Every right answer, the target first, each once."""
        return tuple(dict.fromkeys((self.target, *self.targets)))

    @property
    def pictures(self) -> tuple[Path, ...]:
        """Every picture that the triplet needs, the reference first, each once."""
        return tuple(dict.fromkeys((self.reference, *self.answers, *self.excluded)))
