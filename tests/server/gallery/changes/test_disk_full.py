"""A disk that is full, at every moment of a change: nothing of it is kept, and it works once there is room.

ROUNDS=100 (`make soak`) tries a hundred sizes for each kind of change, instead of a few.
"""

import contextlib
import os
import random
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from asymcir_common import AsymcirError
from asymcir_server import Gallery, ServerBundle
from asymcir_server.errors import GalleryBuildError
from asymcir_server.gallery.history import remove_old_snapshots, verify_snapshots
from gallery_writers import CHANGING, begin, count_built, expected, make_change, read_state

FEW_ROUNDS = 6
DISK_BYTES = 3 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of 3 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user cannot mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # some of its files may be mapped still


@contextlib.contextmanager
def filled(folder: Path, left_bytes: int) -> Iterator[None]:
    """Leave so much room on a file system."""
    free = os.statvfs(folder)
    size = max(0, free.f_bavail * free.f_frsize - left_bytes)
    filler = folder / "filler"
    filler.write_bytes(b"\0" * size)
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def limited(largest_bytes: int) -> Iterator[None]:
    """Let this process write no file larger than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def rounds() -> int:
    return int(os.environ.get("ROUNDS", FEW_ROUNDS))


@pytest.mark.parametrize("kind", CHANGING)
@pytest.mark.timeout(3600)
def test_a_change_without_room_is_not_kept(small_disk: Path, kind: str) -> None:
    draw, folder, done, failed = random.Random(f"full {kind}"), small_disk / "g", 0, 0
    begin(folder, kind)
    for _ in range(rounds()):
        for left in (0, draw.randrange(1 << 18), draw.randrange(1 << 15)):
            with filled(small_disk, left):
                try:
                    make_change(folder, kind, done)
                except GalleryBuildError as exc:
                    failed += 1
                    assert "free space" in str(exc)
                    assert read_state(folder) == expected(kind, done)  # read with the disk still full
                else:
                    done += 1
            assert read_state(folder) == expected(kind, done)
            verify_snapshots(folder)
        make_change(folder, kind, done)
        done += 1
        assert read_state(folder) == expected(kind, done)
        remove_old_snapshots(folder, keep=1)
    assert failed > rounds() / 2


@pytest.mark.parametrize("kind", CHANGING)
@pytest.mark.timeout(3600)
def test_a_change_whose_file_cannot_grow_is_not_kept(tmp_path: Path, kind: str) -> None:
    draw, folder, done, failed = random.Random(f"limit {kind}"), tmp_path / "g", 0, 0
    begin(folder, kind)
    for _ in range(rounds()):
        with limited(draw.randrange(1 << 15)):
            try:
                make_change(folder, kind, done)
            except AsymcirError:
                failed += 1
            else:
                done += 1
        assert read_state(folder) == expected(kind, done)
        verify_snapshots(folder)
        make_change(folder, kind, done)
        done += 1
        remove_old_snapshots(folder, keep=1)
    assert read_state(folder) == expected(kind, done)
    assert failed > 0


@pytest.mark.timeout(3600)
def test_a_build_without_room_leaves_the_snapshot_before(
    small_disk: Path, bundle: ServerBundle, pictures: Path, tmp_path: Path
) -> None:
    draw, folder, done, failed = random.Random("full build"), small_disk / "g", 1, 0
    make_change(folder, "build", 0, bundle, pictures)
    for _ in range(rounds()):
        with filled(small_disk, draw.randrange(1 << 17)):
            try:
                make_change(folder, "build", done, bundle, pictures)
            except AsymcirError:
                failed += 1
            else:
                done += 1
            assert len(read_state(folder)) == count_built(done - 1)
        verify_snapshots(folder)
        remove_old_snapshots(folder, keep=1)
    make_change(folder, "build", done, bundle, pictures)
    assert len(read_state(folder)) == count_built(done)
    assert failed > 0


@pytest.mark.timeout(3600)
def test_a_flipped_bit_in_the_changes_is_found_or_changes_nothing(tmp_path: Path) -> None:
    draw, folder = random.Random("flips"), tmp_path / "g"
    begin(folder, "mixed")
    for number in range(3):
        make_change(folder, "mixed", number)
    path = folder / "changes/000001.sqlite"
    data, held, found = path.read_bytes(), read_state(folder), 0
    for _ in range(20 * rounds()):
        place = draw.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :])
        try:
            verify_snapshots(folder)
        except AsymcirError as exc:
            assert "changes" in str(exc)
            found += 1
        else:
            assert read_state(folder) == held
    assert found > 0
    path.write_bytes(data)
    verify_snapshots(folder)
    Gallery.open(folder).close()
