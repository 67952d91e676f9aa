"""The command that installs an extra fits how asymcir was installed."""

import importlib
import json
from pathlib import Path

import pytest
from asymcir_common.installation import how_to_install


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (None, "pip install 'asymcir[server]'"),
        ({"url": "https://a.example/asymcir.whl", "archive_info": {}}, "pip install 'asymcir[server]'"),
        ({"url": "file:///is/not/there", "dir_info": {}}, "pip install 'asymcir[server]'"),
        ({"url": "{clone}", "dir_info": {}}, "pip install '{path}[server]'"),
        ({"url": "{clone}", "dir_info": {"editable": True}}, "pip install -e '{path}[server]'"),
        (
            {"url": "https://a.example/asymcir", "vcs_info": {"vcs": "git", "commit_id": "0"}},
            "pip install 'asymcir[server] @ git+https://a.example/asymcir'",
        ),
    ],
)
def test_how_to_install(
    record: dict[str, object] | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    info = tmp_path / "asymcir-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: asymcir\nVersion: 9.9\n")
    if record is not None:
        record = {**record, "url": str(record["url"]).replace("{clone}", clone.as_uri())}
        (info / "direct_url.json").write_text(json.dumps(record))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert how_to_install("server") == expected.replace("{path}", str(clone))
    if record is not None and str(record["url"]).startswith(clone.as_uri()):
        monkeypatch.chdir(clone)
        assert how_to_install("server") == expected.replace("{path}", ".")
