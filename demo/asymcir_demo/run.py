"""The demo: pictures become a gallery, a server serves it, a device asks, and the right pictures come back."""

import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from asymcir_benchmarks.emojicir.catalogue import Catalogue
from asymcir_benchmarks.emojicir.dataset import SUFFIX
from asymcir_benchmarks.emojicir.evaluate import Evaluation, evaluate_pictures, evaluate_triplets
from asymcir_common.places import PathReader
from asymcir_edge import GalleryAdmin, NewPicture, QueryEncoder, RetrievalClient, SearchResult
from asymcir_server import BuildReport, Gallery, ServerBundle, build_gallery
from asymcir_server.gallery.build import Progress

from asymcir_demo.assets import SHOWN_FAMILY, Assets
from asymcir_demo.errors import DemoError
from asymcir_demo.sheet import Row

TOP_K = 10
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0


def build(assets: Assets, out: Path, progress: Progress | None) -> BuildReport:
    """Build the gallery, or its next snapshot, in a process of its own, which gives its memory back when it ends."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_build, assets, out, progress).result()


def _build(assets: Assets, out: Path, progress: Progress | None) -> BuildReport:
    return build_gallery(assets.gallery_list, ServerBundle.load(assets.server_bundle), out, progress=progress)


@contextmanager
def serving(assets: Assets, gallery: Path, port: int) -> Iterator[str]:
    """Run `asymcir serve` as its own process; yields its address and stops it with SIGTERM.

    Raises:
        DemoError: it does not come up.
    """
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, "-m", "asymcir_edge", "serve", "--server-bundle", str(assets.server_bundle)]
        command += ["--gallery", f"emoji={gallery}", "--port", str(port), "--port-file", str(port_file), "--admin"]
        log = Path(folder) / "log"
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            yield f"127.0.0.1:{_wait_for_port(process, port_file, log)}"
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_port(process: "subprocess.Popen[bytes]", port_file: Path, log: Path) -> int:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if port_file.is_file() and (text := port_file.read_text(encoding="utf-8").strip()):
            return int(text)
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise DemoError(f"the server ended with code {process.returncode}: {lines[-1] if lines else 'no output'}")
        time.sleep(0.1)
    raise DemoError(f"the server did not come up within {_START_TIMEOUT_S:g} s")


def ask(assets: Assets, encoder: QueryEncoder, client: RetrievalClient) -> list[tuple[Row, SearchResult]]:
    """Run every shown query over gRPC: composed ones first, then sketches."""
    answers = []
    for triplet in assets.shown_triplets():
        path = assets.queries / f"{triplet.reference}{SUFFIX}"
        note = "concept seen, style unseen" if triplet.family == SHOWN_FAMILY else f"held-out concept: {triplet.family}"
        answers.append(_ask_one(path, triplet.modifier, triplet.target, note, [triplet.reference], encoder, client))
    for slug in assets.shown_sketches():
        path = assets.sketches / f"{slug}{SUFFIX}"
        answers.append(_ask_one(path, "", slug, "sketch of a held-out concept", [], encoder, client))
    return answers


def _ask_one(
    path: Path,
    modifier: str,
    target: str,
    note: str,
    excluded: Sequence[str],
    encoder: QueryEncoder,
    client: RetrievalClient,
) -> tuple[Row, SearchResult]:
    tokens = encoder.encode_file(path)
    result = client.search(
        tokens, encoder.bundle.word_space, modifier, top_k=TOP_K, excluded_ids=excluded, with_metadata=True
    )
    hits = [hit.id for hit in result.hits]
    rank = hits.index(target) + 1 if target in hits else None
    return Row(query=path, change=modifier, note=note, hits=hits, answer=target, rank=rank), result


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """A picture that came to the gallery and went, while the server answered.

    Attributes:
        query: its file.
        version: of the gallery with the picture in it.
        rank: of the picture, asked for with itself; None: not among the first.
        where: a filter that the picture alone satisfies.
        visible_ms: from sending it to the answer of a search that found it by that filter.
        version_after: of the gallery without it.
    """

    query: Path
    version: str
    rank: int | None
    where: str
    visible_ms: float
    version_after: str


def change(assets: Assets, encoder: QueryEncoder, client: RetrievalClient) -> Changed:
    """Add a query's picture to the gallery, find it with a filter, and remove it again.

    Raises:
        DemoError: an answer is not what it has to be.
    """
    path = assets.queries / f"{assets.shown_triplets()[0].reference}{SUFFIX}"
    tokens, where, identity = encoder.encode_file(path), 'source = "yours"', f"yours/{path.stem}"
    admin, space = GalleryAdmin(client), encoder.bundle.word_space
    started_s = time.perf_counter()
    picture = NewPicture(id=identity, image=PathReader().read(path), metadata={"name": path.stem, "source": "yours"})
    for added in admin.add([picture]):
        if added.status == "rejected":
            raise DemoError(f"the server did not take {path}: {added.reason}")
    filtered = client.search(tokens, space, top_k=TOP_K, where=where)
    visible_ms = (time.perf_counter() - started_s) * 1000.0
    if [hit.id for hit in filtered.hits] != [identity]:
        raise DemoError(f"expected {identity} alone to satisfy {where}, got {[hit.id for hit in filtered.hits]}")
    hits = [hit.id for hit in client.search(tokens, space, top_k=TOP_K).hits]
    admin.remove([identity])
    after = client.search(tokens, space, top_k=TOP_K)
    if identity in [hit.id for hit in after.hits]:
        raise DemoError(f"{identity} was removed and is found still")
    return Changed(
        query=path,
        version=filtered.gallery_version,
        rank=hits.index(identity) + 1 if identity in hits else None,
        where=where,
        visible_ms=visible_ms,
        version_after=after.gallery_version,
    )


def measure(
    assets: Assets, gallery: Path, bundle: ServerBundle, encoder: QueryEncoder
) -> tuple[Evaluation, Evaluation]:
    """Evaluate a sample of the held-out triplets, and the held-out sketches."""
    catalogue = Catalogue.read(assets.gallery_list)
    opened = Gallery.open(gallery, bundle.target_spaces)
    try:
        triplets = evaluate_triplets(
            assets.measured_triplets(),
            pictures=assets.queries,
            suffix=SUFFIX,
            names=assets.names(),
            bundle=bundle,
            encoder=encoder,
            gallery=opened,
            catalogue=catalogue,
        )
        sketches = evaluate_pictures(
            assets.sketch_slugs(),
            pictures=assets.sketches,
            suffix=SUFFIX,
            bundle=bundle,
            encoder=encoder,
            gallery=opened,
            catalogue=catalogue,
        )
    finally:
        opened.close()
    return triplets, sketches
