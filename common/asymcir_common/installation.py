"""How an extra is added to this installation: from the index, a clone, a file, or a repository."""

import importlib.metadata
import json
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

_DISTRIBUTION = "asymcir"


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra: "pip install '.[server]'" in the clone that was installed.

    Source: PEP 610, the record of where a distribution came from.
    """
    try:
        record = json.loads(importlib.metadata.distribution(_DISTRIBUTION).read_text("direct_url.json") or "{}")
        url, vcs = str(record.get("url", "")), record.get("vcs_info")
        editable = bool(record.get("dir_info", {}).get("editable"))
    except (importlib.metadata.PackageNotFoundError, ValueError, AttributeError):
        url, vcs, editable = "", None, False
    if vcs and url:
        kind = vcs.get("vcs", "git")
        return f"pip install {shlex.quote(f'{_DISTRIBUTION}[{extra}] @ {kind}+{url}')}"
    if url.startswith("file://"):
        place = Path(unquote(urlsplit(url).path))
        if place.exists():
            named = "." if place == Path.cwd() else str(place)
            return f"pip install {'-e ' if editable else ''}{shlex.quote(f'{named}[{extra}]')}"
    return f"pip install '{_DISTRIBUTION}[{extra}]'"
