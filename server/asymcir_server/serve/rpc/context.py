"""What a servicer asks of a call, whichever face it came through."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import grpc

Metadata = tuple[tuple[str, str | bytes], ...]


class CallContext(grpc.ServicerContext):
    """The context of a call, for a servicer that answers in a thread while the call itself is a loop's.

    A face says what it knows of the call by `time_remaining`, `invocation_metadata`, `peer` and `abort`.
    """

    def __init__(self) -> None:
        """Begin, active."""
        self._trailing: Metadata = ()
        self._callbacks: list[Callable[[], None]] = []
        self._active = True

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """Send these beside the answer or the error."""
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Metadata:
        """What is sent beside the answer."""
        return self._trailing

    def is_active(self) -> bool:
        """The caller still waits."""
        return self._active

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call back when the call ends; False where it has ended."""
        if self._active:
            self._callbacks.append(callback)
        return self._active

    def end(self) -> None:
        """The call has ended, by its answer or because the caller has gone."""
        self._active = False
        for callback in self._callbacks:
            callback()
        self._callbacks.clear()

    def cancel(self) -> None:
        """End the call."""
        self.end()

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """End the call with an error."""
        self.abort(status.code, status.details)

    def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        """Not offered: servicers answer with trailing metadata."""
        raise NotImplementedError

    def set_code(self, code: grpc.StatusCode) -> None:
        """Not offered: servicers abort."""
        raise NotImplementedError

    def set_details(self, details: str) -> None:
        """Not offered: servicers abort."""
        raise NotImplementedError

    def peer_identities(self) -> None:
        """None: clients are told apart by their keys."""

    def peer_identity_key(self) -> None:
        """None: clients are told apart by their keys."""

    def auth_context(self) -> Mapping[str, Any]:
        """Empty: clients are told apart by their keys."""
        return {}
