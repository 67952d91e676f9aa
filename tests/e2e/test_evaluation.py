"""EmojiCIR's ranks against a naive full-matrix version, through the committed bundles."""

import sqlite3
from pathlib import Path

import numpy as np
from asymcir_benchmarks.evaluate import METHODS, evaluate_triplets, read_triplets
from asymcir_benchmarks.metrics import NOT_FOUND
from asymcir_benchmarks.tables import format_recalls, recall_figures
from asymcir_edge import DeviceBundle, QueryEncoder
from asymcir_protos import preprocess, read_image
from asymcir_server import Gallery, ServerBundle, TextEncoder, VisualEncoder
from asymcir_server.gallery.snapshots import current_snapshot


def test_ranks_equal_those_of_the_full_score_matrix(assets: Path, gallery: Path) -> None:
    bundle = ServerBundle.load(assets / "server", threads=1)
    encoder = QueryEncoder(DeviceBundle.load(assets / "device"))
    opened = Gallery.open(gallery, bundle.target_spaces)
    everything = [opened.metadata([triplet.target])[0] for triplet in read_triplets(assets / "triplets.jsonl")]
    triplets = [
        triplet
        for triplet, record in zip(read_triplets(assets / "triplets.jsonl"), everything, strict=True)
        if record.get("name")
    ][:12]
    names = {triplet.target: opened.metadata([triplet.target])[0]["name"] for triplet in triplets}
    found = evaluate_triplets(
        triplets,
        pictures=assets / "queries",
        suffix=".webp",
        names=names,
        bundle=bundle,
        encoder=encoder,
        gallery=opened,
    )
    vectors = np.load(current_snapshot(gallery) / "vectors.npy")
    with sqlite3.connect(current_snapshot(gallery) / "metadata.sqlite") as database:
        slug_of = dict(database.execute("SELECT row, id FROM items"))
    text, visual = TextEncoder(bundle), VisualEncoder(bundle)
    for number, triplet in enumerate(triplets):
        picture = read_image(assets / "queries" / f"{triplet.reference}.webp")
        image = visual.encode_image(preprocess(picture, visual.preprocessing)[None])[0]
        typed = text.encode_text([triplet.modifier])[0]
        image, typed = image / np.linalg.norm(image), typed / np.linalg.norm(typed)
        tokens = encoder.encode_image(picture).astype(np.float16).astype(np.float32)
        for method, query in (
            ("composed", text.encode_queries([tokens], [triplet.modifier])[0]),
            ("picture + text", (image + typed) / np.linalg.norm(image + typed)),
        ):
            ranking = [slug_of[int(row)] for row in np.argsort(-(vectors @ query), kind="stable")]
            ranking = [slug for slug in ranking if slug != triplet.reference]
            rank = ranking.index(triplet.target) + 1
            assert found.ranks[method][number] == (rank if rank <= 10 else NOT_FOUND)
    figures = recall_figures(found, "triplets")
    assert figures["triplets, composed, all, R@10"] == round(float((found.ranks["composed"] <= 10).mean()), 6)
    assert all(method in format_recalls(found) for method in METHODS)
    opened.close()
