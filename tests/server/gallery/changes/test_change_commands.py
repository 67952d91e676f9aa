"""`asymcir gallery add`, `remove`, `update-metadata`, `compact`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from asymcir_edge.cli import main
from asymcir_server import BuildConfig, Gallery, ServerBundle, build_gallery
from asymcir_server.errors import SpaceMismatchError
from asymcir_server.gallery import AddConfig, add_pictures, edit_gallery
from asymcir_server.gallery.sources.reporting import describe_report
from tiny_server_bundle import TinyModel, write_tiny_bundle

Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; a process of its own takes a second or two to start."""

    def call(*arguments: object) -> CompletedProcess[str]:
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return CompletedProcess(arguments, code, said.out, said.err)

    return call


@pytest.fixture
def folder(tmp_path: Path, pictures: Path, bundle: ServerBundle) -> Path:
    build_gallery(
        pictures / "left", bundle, tmp_path / "g", config=BuildConfig(thumbnail_side=16, near_duplicates=True)
    )
    return tmp_path / "g"


@pytest.fixture
def listed(tmp_path: Path, pictures: Path) -> Path:
    """A list of ten further pictures, a missing one, and one of the gallery under its id."""
    files = sorted((pictures / "right").glob("*.png"))[:10]
    lines = [{"path": str(path), "id": f"new{n}", "price": n, "item": f"item{n // 2}"} for n, path in enumerate(files)]
    lines.append({"path": "missing.png", "id": "missing"})
    left = sorted((pictures / "left").glob("*.png"))
    lines.append({"path": str(left[0]), "id": left[0].name})
    path = tmp_path / "more.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_the_commands_change_a_gallery_and_say_what_they_did(
    folder: Path, listed: Path, bundle_folder: Path, tmp_path: Path, run: Run
) -> None:
    place = ("--gallery", folder)
    added = run("gallery", "add", listed, "--server-bundle", bundle_folder, *place)
    assert added.returncode == 0, added.stderr
    assert "10 added, 0 replaced, 1 there already, 1 put aside, 30 pictures now" in added.stdout
    assert "put aside: missing: " in added.stdout
    again = run("gallery", "add", listed, "--server-bundle", bundle_folder, *place, "--json")
    report = json.loads(again.stdout)
    assert (report["added"], report["unchanged"], report["encoded"], report["size"]) == (0, 11, 0, 30)
    updates = tmp_path / "updates.jsonl"
    updates.write_text('{"id": "new1", "price": 100}\n\n{"id": "nobody", "price": 1}\n', encoding="utf-8")
    updated = run("gallery", "update-metadata", *place, "--from", updates)
    assert "1 updated, 0 had it already, 30 pictures now\nnot there: nobody" in updated.stdout
    removed = run("gallery", "remove", *place, "--where", "price >= 8")
    assert "3 removed, 27 pictures now" in removed.stdout  # new1, new8, new9
    (tmp_path / "ids").write_text("new2\nnobody\n", encoding="utf-8")
    removed = run("gallery", "remove", *place, "--ids-file", tmp_path / "ids")
    assert "1 removed, 26 pictures now\nnot there: nobody" in removed.stdout
    assert "0 removed" in run("gallery", "remove", *place, "--ids", "new2, nobody").stdout
    info = run("gallery", "info", *place).stdout
    assert "6 added, 0 removed, 0 with other metadata" in info and "'price' (integer)" in info
    assert "changes: 6 added" in run("gallery", "list", *place).stdout
    assert run("gallery", "verify", *place).returncode == 0
    compacted = run("gallery", "compact", *place)
    assert "snapshot 000002: 26 pictures, 6 added" in compacted.stdout
    assert (folder / "snapshots/000002/quarantine.jsonl").exists()
    assert "nothing to merge" in run("gallery", "compact", *place).stdout
    back = run("gallery", "rollback", *place, "--discard-changes")
    assert "current snapshot: 000001" in back.stdout
    assert "changes" not in run("gallery", "list", *place).stdout.splitlines()[0]


def test_what_cannot_be_done_is_said_in_one_line(folder: Path, tmp_path: Path, run: Run) -> None:
    place = ("--gallery", folder)
    (tmp_path / "bad.jsonl").write_text('{"id": "a"}\n{"price": 1}\n', encoding="utf-8")
    for arguments, words in (
        (("remove", *place, "--where", "price < 3"), "cannot filter by 'price'"),
        (("remove", *place, "--ids", ","), "at least one id"),
        (("remove", *place, "--ids-file", tmp_path / "none"), "cannot read "),
        (("update-metadata", *place, "--from", tmp_path / "bad.jsonl"), "line 2 of"),
        (("compact", "--gallery", tmp_path / "none"), "holds no finished gallery"),
    ):
        failed = run("gallery", *arguments)
        assert failed.returncode != 0 and words in failed.stderr and "Traceback" not in failed.stderr
    assert not (tmp_path / "none").exists()
    with edit_gallery(folder, "gallery compact"):
        failed = run("gallery", "remove", *place, "--ids", "a", "--wait", "0.1")
    assert failed.returncode != 0 and "`asymcir gallery compact`, process " in failed.stderr


def test_an_added_picture_is_what_a_build_makes_of_it(
    folder: Path, listed: Path, pictures: Path, bundle: ServerBundle, tmp_path: Path
) -> None:
    left = sorted((pictures / "left").glob("*.png"))
    config = BuildConfig(thumbnail_side=16, near_duplicates=True)
    shutil.copytree(pictures, tmp_path / "all")
    (tmp_path / "all/copy.png").write_bytes(left[0].read_bytes())  # of a picture that the gallery holds
    report = add_pictures(folder, tmp_path / "all", bundle, config=AddConfig(batch_size=7))
    assert report.added == 41 and report.encoded == 20 and not report.rejected  # ids begin with the subfolder here
    changed = Gallery.open(folder)
    build_gallery([tmp_path / "all"], bundle, tmp_path / "built", config=config)
    built = Gallery.open(tmp_path / "built")
    for query in np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32):
        mine, theirs = (one.search(query[None], 61) for one in (changed, built))
        scores = dict(zip(mine.ids[0], mine.scores[0].tolist(), strict=True))
        for identity, score in zip(theirs.ids[0], theirs.scores[0].tolist(), strict=True):
            assert scores[identity] == pytest.approx(score, abs=1e-5)
    for identity in theirs.ids[0]:
        assert changed.thumbnail(identity) == built.thumbnail(identity) is not None
    changed.close()
    built.close()


def test_a_rebuild_takes_the_vectors_of_added_pictures_and_another_space_is_refused(
    folder: Path, pictures: Path, bundle: ServerBundle, tmp_path: Path
) -> None:
    assert add_pictures(folder, pictures / "right", bundle).added == 20
    report = build_gallery(pictures, bundle, folder, config=BuildConfig(thumbnail_side=16, near_duplicates=True))
    assert (report.size, report.encoded) == (40, 0)
    assert report.changes_before == (20, 0, 0)
    assert any("snapshot before (20 added" in line for line in describe_report(report))
    other = ServerBundle.load(write_tiny_bundle(tmp_path / "other", TinyModel(seed=8)))
    with pytest.raises(SpaceMismatchError, match="target space"):
        add_pictures(folder, pictures / "right", other)
