"""Thumbnails of answers, from a server's HTTP address."""

import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable

from asymcir_edge.errors import AddressError, CredentialsError, ServerUnavailableError

_LARGEST_BYTES = 1_000_000


def fetch_thumbnails(
    url: str, gallery: str, ids: Iterable[str], *, key: str = "", timeout_s: float = 10.0
) -> dict[str, bytes]:
    """Fetch the thumbnails of pictures of a gallery.

    Args:
        url: of the server, such as "http://localhost:8080".
        gallery: its name.
        ids: of the pictures.
        key: that the server asks for; empty for none.
        timeout_s: for each.

    Returns:
        id -> WebP file, of those that have one.

    Raises:
        AddressError: the address is not http:// or https://.
        CredentialsError: the key would be sent unencrypted to another machine.
        ServerUnavailableError: no server answers there.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise AddressError(f"expected an address such as http://localhost:8080 for thumbnails, got {url}")
    local = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if key and parts.scheme == "http" and not local:
        raise CredentialsError(f"the key would be sent to {url} unencrypted: use an https:// address")
    # A server on this machine is not asked through a proxy.
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    found = {}
    for identity in dict.fromkeys(ids):
        path = f"/thumbnails/{urllib.parse.quote(gallery, safe='')}/{urllib.parse.quote(identity)}"
        request = urllib.request.Request(url.rstrip("/") + path)
        if key:
            request.add_header("authorization", f"Bearer {key}")
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                found[identity] = answer.read(_LARGEST_BYTES)
        except urllib.error.HTTPError:
            continue  # a gallery without thumbnails, or a picture without one
        except OSError as exc:
            raise ServerUnavailableError(f"no thumbnails from {url}: {exc}; leave out --http, or mend it") from exc
    return found
