"""API keys: random texts that callers send, of which the server's file holds only digests."""

import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from asymcir_common.files import write_atomically

from asymcir_server.errors import KeysError

Role = Literal["search", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

MAX_RATE = 1e6

_FORM = re.compile(r"ak_(?P<id>[0-9a-f]{8})_(?P<secret>[A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FORMAT = "asymcir.keys"
_LOOK_EVERY_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """What the file holds of a key.

    Attributes:
        id: names it, in the key's text too.
        name: who has it.
        role: "search", or "admin", which may search too.
        digest: SHA-256 of the secret part. The secret has 256 random bits, so a slow hash would add nothing.
        created: UTC, ISO 8601.
        rate: calls a second of the service Retrieval; None: any number.
    """

    id: str
    name: str
    role: Role
    digest: str
    created: str
    rate: float | None = None


def create_key(path: str | Path, *, name: str, role: Role, rate: float | None = None) -> str:
    """Add a key to a file, which is made where there is none.

    Returns:
        The key's text; it cannot be had again.

    Raises:
        KeysError: the file cannot be read or written, or the name, role or rate does not fit.
    """
    path = Path(path)
    if not _NAME.fullmatch(name):
        raise KeysError(f"expected a name of letters, digits, '.', '_', '@' and '-', got {name!r}")
    if role not in ROLES:
        raise KeysError(f"expected the role {' or '.join(ROLES)}, got {role!r}")
    if rate is not None and not _is_rate(rate):
        raise KeysError(f"expected a rate above 0 and at most {MAX_RATE:g} calls a second, got {rate}")
    identity, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    key = Key(id=identity, name=name, role=role, digest=_digest(secret), created=created, rate=rate)
    _write(path, [*(read_keys(path) if path.exists() else []), key])
    return f"ak_{identity}_{secret}"


def revoke_key(path: str | Path, identity: str) -> Key:
    """Remove a key from a file, by its id; servers refuse it within a second.

    Raises:
        KeysError: there is no such key.
    """
    path = Path(path)
    keys = read_keys(path)
    for key in keys:
        if key.id == identity:
            _write(path, [other for other in keys if other is not key])
            return key
    raise KeysError(f"no key {identity!r} in {path}: `asymcir keys list` shows their ids")


def read_keys(path: str | Path) -> list[Key]:
    """Read a file of keys.

    Raises:
        KeysError: it cannot be read, or is none.
    """
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != _FORMAT or record["version"] != 1:
            raise ValueError(f"format {record['format']!r}, version {record['version']!r}")
        keys = [Key(**entry) for entry in record["keys"]]
        for key in keys:
            if key.role not in ROLES or not _DIGEST.fullmatch(key.digest):
                raise ValueError(f"the key {key.id} has no role or digest of ours")
            if key.rate is not None and not _is_rate(key.rate):
                raise ValueError(f"the key {key.id} has the rate {key.rate!r}")
        return keys
    except OSError as exc:
        raise KeysError(f"cannot read the keys in {path}: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise KeysError(f"{path} is no file of `asymcir keys`: {exc}") from exc


class KeyStore:
    """The keys of a file, read again when it changes. Safe to share between threads."""

    def __init__(self, path: str | Path) -> None:
        """Read the file.

        Raises:
            KeysError: it cannot be read.
        """
        path = Path(path)
        self._path, self._lock = path, threading.Lock()
        self._keys = {key.id: key for key in read_keys(path)}
        self._stamp = self._look()
        self._looked_s = time.monotonic()

    def find(self, text: str) -> Key | None:
        """Return the key of a text, None for one that is unknown or was revoked. Takes as long for either."""
        self._refresh()
        match = _FORM.fullmatch(text)
        key = self._keys.get(match["id"]) if match else None
        digest = _digest(match["secret"] if match else "")
        return key if hmac.compare_digest(digest, key.digest if key else "0" * 64) and key else None

    def _refresh(self) -> None:
        if time.monotonic() - self._looked_s < _LOOK_EVERY_S:
            return
        with self._lock:
            self._looked_s = time.monotonic()
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._keys = {key.id: key for key in read_keys(self._path)}
                _log.info("read %d keys again", len(self._keys))
            except KeysError as exc:
                _log.error("the keys stay as they were: %s", exc)

    def _look(self) -> tuple[int, ...] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_RATE


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _to_entry(key: Key) -> dict[str, object]:
    """A key without a rate is written as before there were rates, so that older servers read it."""
    return {name: value for name, value in asdict(key).items() if value is not None}


def _write(path: Path, keys: list[Key]) -> None:
    try:
        if not path.exists():
            path.touch(mode=0o600)
        mode = path.stat().st_mode & 0o777
        record = {"format": _FORMAT, "version": 1, "keys": [_to_entry(key) for key in keys]}
        write_atomically(path, json.dumps(record, indent=2) + "\n", mode=mode)
    except OSError as exc:
        raise KeysError(f"cannot write the keys to {path}: {exc.strerror}") from exc
