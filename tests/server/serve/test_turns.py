"""Fairness between keys: turns in the queue, shares of the room."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from asymcir_server.errors import OverloadedError
from asymcir_server.serve.admission import ACTIVE_S, Admission
from asymcir_server.serve.security.access import Caller, current_caller
from asymcir_server.serve.turns import TurnQueue


@contextmanager
def calling(identity: str) -> Iterator[None]:
    token = current_caller.set(Caller(id=identity))
    try:
        yield
    finally:
        current_caller.reset(token)


def admit_all(admission: Admission, identity: str, tries: int, held: ExitStack) -> int:
    """Return how many of a caller's requests are let in, to stay until `held` ends."""
    admitted = 0
    with calling(identity):
        for _ in range(tries):
            try:
                held.enter_context(admission.admit())
                admitted += 1
            except OverloadedError:
                pass
    return admitted


def test_callers_take_turns_and_each_keeps_its_order() -> None:
    queue = TurnQueue[str]()
    for number in range(6):
        queue.append("flood", f"flood {number}")
    queue.append("small", "small 0")
    queue.append("small", "small 1")
    queue.remove("flood", "flood 1")
    with pytest.raises(ValueError, match="not in"):
        queue.remove("nobody", "flood 0")
    assert len(queue) == len(list(queue)) == 7
    taken = []
    while queue:
        first = queue.peek()
        taken.append(queue.popleft())
        assert taken[-1] == first
    assert taken == ["flood 0", "small 0", "flood 2", "small 1", "flood 3", "flood 4", "flood 5"]


def test_a_key_alone_has_the_whole_room() -> None:
    admission = Admission(max_in_flight=8)
    with ExitStack() as held:
        assert admit_all(admission, "one", 20, held) == 8
    assert admission.in_flight == 0


def test_a_flood_leaves_room_for_a_newcomer() -> None:
    admission = Admission(max_in_flight=8)
    with ExitStack() as flood, ExitStack() as small:
        assert admit_all(admission, "flood", 20, flood) == 8
        assert admit_all(admission, "small", 1, small) == 0  # full; but from now on the room is shared
        flood.close()
        assert admit_all(admission, "flood", 20, flood) == 4
        assert admit_all(admission, "small", 20, small) == 4


def test_a_share_is_forgotten_with_its_caller() -> None:
    now_s = [1000.0]
    admission = Admission(max_in_flight=8, now=lambda: now_s[0])
    with ExitStack() as held:
        assert admit_all(admission, "gone", 1, held) == 1
    now_s[0] += ACTIVE_S + 1.0
    with ExitStack() as held:
        assert admit_all(admission, "stays", 20, held) == 8


def test_callers_without_keys_share_one_room() -> None:
    admission = Admission(max_in_flight=8)
    with ExitStack() as held:
        assert admit_all(admission, "", 20, held) == 8
