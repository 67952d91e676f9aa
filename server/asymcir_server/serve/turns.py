"""A queue in which callers take turns, so that one who sends much does not hold up one who sends little."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class TurnQueue(Generic[T]):
    """Hands out one item of each caller in turn, the oldest of each first. With one caller it is a plain queue.

    Not safe to share between threads without a lock.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._by_caller: OrderedDict[str, deque[T]] = OrderedDict()
        self._count = 0

    def append(self, caller: str, item: T) -> None:
        """Add an item behind the caller's others."""
        self._by_caller.setdefault(caller, deque()).append(item)
        self._count += 1

    def peek(self) -> T:
        """Return what `popleft` would."""
        return next(iter(self._by_caller.values()))[0]

    def popleft(self) -> T:
        """Take the oldest item of the caller whose turn it is."""
        caller, items = next(iter(self._by_caller.items()))
        item = items.popleft()
        self._count -= 1
        if items:
            self._by_caller.move_to_end(caller)
        else:
            del self._by_caller[caller]
        return item

    def remove(self, caller: str, item: T) -> None:
        """Take an item out.

        Raises:
            ValueError: it is not there.
        """
        items = self._by_caller.get(caller, deque())
        items.remove(item)
        self._count -= 1
        if not items:
            del self._by_caller[caller]

    def __len__(self) -> int:
        """Count the items."""
        return self._count

    def __iter__(self) -> Iterator[T]:
        """Yield the items, caller by caller."""
        for items in self._by_caller.values():
            yield from items
