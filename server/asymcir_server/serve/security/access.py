"""Who calls, and whether the caller may: one check for both faces."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from asymcir_server.errors import PermissionDeniedError, UnauthenticatedError
from asymcir_server.serve.security.keys import KeyStore, Role
from asymcir_server.serve.security.rates import RateLimits

AUTHORIZATION = "authorization"
ADMIN_SERVICES = ("asymcir.v1.GalleryAdmin",)
_SCHEME = "bearer "


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        id: of the key; empty where the server asks for none.
        name: whom the key was made for.
        role: what the caller may do.
    """

    id: str = ""
    name: str = ""
    role: Literal["search", "admin"] = "admin"


ANYONE = Caller()
current_caller: ContextVar[Caller] = ContextVar("current_caller", default=ANYONE)
"""Of the call that is being answered, in the thread that answers it."""


class Access:
    """Decides by a call's service and its `authorization` header.

    Args:
        keys: None: whoever reaches the server may call everything that it offers.
    """

    def __init__(self, keys: KeyStore | None = None) -> None:
        """Prepare."""
        self._keys, self._rates = keys, RateLimits()

    @property
    def is_open(self) -> bool:
        """No key is asked for."""
        return self._keys is None

    def check_service(self, service: str, authorization: str | None) -> Caller:
        """Check a call of a service, named by its full name, and count it where the key has a rate.

        Raises:
            UnauthenticatedError, PermissionDeniedError: see `check`.
            RateLimitError: calls of the service Retrieval come faster than the key's rate.
        """
        if service in ADMIN_SERVICES:
            return self.check("admin", authorization)
        return self._check("search", authorization, count=True)

    def check(self, role: Role, authorization: str | None) -> Caller:
        """Check a call that needs a role.

        Raises:
            UnauthenticatedError: no key, or one that is wrong or revoked.
            PermissionDeniedError: a key of another role.
        """
        return self._check(role, authorization, count=False)

    def _check(self, role: Role, authorization: str | None, *, count: bool) -> Caller:
        if self._keys is None:
            return ANYONE
        if not authorization:
            raise UnauthenticatedError("expected a key, as `authorization: Bearer KEY`")
        key = None
        if authorization[: len(_SCHEME)].lower() == _SCHEME:
            key = self._keys.find(authorization[len(_SCHEME) :].strip())
        if key is None:
            raise UnauthenticatedError("the key is unknown, or was revoked")
        if role == "admin" and key.role != "admin":
            raise PermissionDeniedError(f"this needs a key of the role admin; this one has the role {key.role}")
        if count:
            self._rates.take(key)
        return Caller(id=key.id, name=key.name, role=key.role)
