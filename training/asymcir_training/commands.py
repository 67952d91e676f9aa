"""The subcommand `asymcir train`: arguments here, torch inside the handlers."""

import argparse
import logging
from pathlib import Path
from typing import Any

_LOG = logging.getLogger(__name__)


def register_train(subparsers: Any) -> None:
    """Add `asymcir train distil` and `asymcir train union`."""
    parser = subparsers.add_parser("train", help="train the light encoder or the UNION head")
    stages = parser.add_subparsers(dest="stage", required=True, metavar="STAGE")

    distil = stages.add_parser(
        "distil",
        help="distil a light encoder from a foundation, on unlabeled pictures",
        description="Distil a light encoder and its token learner (GCD). With --phrases, also by composition "
        "consistency. An interrupted run goes on where it stopped when started again with the same arguments.",
    )
    distil.add_argument("pictures", type=Path, metavar="PICTURES", help="a folder, searched recursively")
    distil.add_argument(
        "--backbone", default="tf_efficientnet_lite0", help="timm model (default: tf_efficientnet_lite0)"
    )
    distil.add_argument("--pretrained-backbone", action="store_true", help="start from timm's weights (needs its hub)")
    distil.add_argument("--size", type=int, default=224, help="picture side that the light encoder sees (default: 224)")
    distil.add_argument("--sentence-length", type=int, default=6, metavar="L", help="sentence tokens (default: 6)")
    distil.add_argument(
        "--width", type=int, default=512, metavar="d", help="inner width of the token learner (default: 512)"
    )
    distil.add_argument("--phrases", type=Path, help="text bank for pseudo-captions, one phrase a line")
    distil.add_argument("--modifiers", type=Path, help="changes for composition consistency, one a line")
    _add_common(distil, epochs=10, batch=96)
    distil.set_defaults(run=run_distil, log_level=logging.INFO)

    union = stages.add_parser(
        "union",
        help="train the UNION head from triplets, towers frozen",
        description='Train the UNION head. TRIPLETS: JSON lines {"reference": PATH, "modifier": TEXT, "target": PATH}.',
    )
    union.add_argument("triplets", type=Path, metavar="TRIPLETS")
    union.add_argument("--light", type=Path, required=True, metavar="CHECKPOINT", help="of the light encoder that asks")
    _add_common(union, epochs=2, batch=32)
    union.set_defaults(run=run_union, log_level=logging.INFO)


def _add_common(parser: argparse.ArgumentParser, *, epochs: int, batch: int) -> None:
    parser.add_argument("--foundation", required=True, metavar="NAME", help="open_clip model, or local-dir:FOLDER")
    parser.add_argument("--pretrained", metavar="TAG", help="pretrained tag or checkpoint of that model")
    parser.add_argument("--out", type=Path, required=True, metavar="CHECKPOINT", help="folder to write")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="state, log and decoded pictures")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"default: {epochs}")
    parser.add_argument("--batch", type=int, default=batch, help=f"default: {batch}")
    parser.add_argument("--seed", type=int, default=0)


def run_distil(args: argparse.Namespace) -> int:
    """Distil and save a light encoder."""
    import torch
    from asymcir_protos import Preprocessing

    from asymcir_training.checkpoints import save_light_encoder
    from asymcir_training.distil import DistilConfig, distil, embed_pictures
    from asymcir_training.foundation import load_foundation
    from asymcir_training.light import LightEncoder
    from asymcir_training.loop import LoopConfig
    from asymcir_training.pictures import load_folder

    foundation = load_foundation(args.foundation, args.pretrained)
    phrases, modifiers = _read_lines(args.phrases), _read_lines(args.modifiers)
    config = DistilConfig(
        batch=args.batch,
        consistency_weight=1.0 if phrases and modifiers else 0.0,
        identity_weight=0.5 if phrases else 0.0,
    )
    spec = Preprocessing(
        size=args.size, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    large, _, _ = load_folder(args.pictures, foundation.preprocessing, args.work / "pictures-foundation.npy")
    small, paths, problems = load_folder(args.pictures, spec, args.work / "pictures-light.npy")
    for problem in problems:
        _LOG.warning("skipped: %s", problem)
    _LOG.info(
        "%d pictures; %d skipped; %d phrases, %d modifiers", len(paths), len(problems), len(phrases), len(modifiers)
    )
    teacher = embed_pictures(foundation, [large])
    torch.manual_seed(args.seed)
    student = LightEncoder(
        args.backbone,
        sentence_length=args.sentence_length,
        word_width=foundation.word_width,
        width=args.width,
        preprocessing=spec,
        pretrained=args.pretrained_backbone,
    )
    student.token_learner.anchor_to_words(foundation.word_embedding_table())
    steps = args.epochs * max(1, len(paths) // args.batch)
    loop = LoopConfig(folder=args.work / "distil", steps=steps, seed=args.seed)
    distil(
        student,
        foundation,
        pictures=[small],
        teacher=teacher,
        phrases=phrases,
        modifiers=modifiers,
        config=config,
        loop=loop,
    )
    save_light_encoder(args.out, student, {"word_space": foundation.word_space(), "foundation": foundation.name})
    print(f"light encoder: {args.out}")
    return 0


def run_union(args: argparse.Namespace) -> int:
    """Train and save a UNION head."""
    import numpy as np
    import torch
    from asymcir_protos import preprocess, read_image

    from asymcir_training.checkpoints import load_light_encoder, save_union_head
    from asymcir_training.distil import embed_pictures
    from asymcir_training.errors import DataError
    from asymcir_training.foundation import load_foundation
    from asymcir_training.loop import LoopConfig
    from asymcir_training.pictures import normalise_pixels
    from asymcir_training.triplets import read_picture_triplets
    from asymcir_training.union import UnionHead
    from asymcir_training.union_training import UnionConfig, train_union_head

    triplets = read_picture_triplets(args.triplets)
    foundation = load_foundation(args.foundation, args.pretrained)
    student, metadata = load_light_encoder(args.light)
    if metadata.get("word_space") != foundation.word_space():
        raise DataError(
            f"the light encoder {args.light} is of the word space {str(metadata.get('word_space'))[:12]}, the "
            f"foundation of {foundation.word_space()[:12]}: pass the foundation that it was distilled from"
        )
    targets = sorted({triplet.target for triplet in triplets})
    numbers = {path: number for number, path in enumerate(targets)}
    features = torch.cat(
        [embed_pictures(foundation, [preprocess(read_image(path), foundation.preprocessing)[None]]) for path in targets]
    )
    queries = []
    with torch.no_grad():
        for triplet in triplets:
            pixels = np.array(preprocess(read_image(triplet.reference), student.preprocessing))[None]
            tokens = student(normalise_pixels(torch.from_numpy(pixels), student.preprocessing))
            queries.append(foundation.compose_query(tokens, [triplet.modifier]))
    steps = args.epochs * max(1, len(triplets) // args.batch)
    torch.manual_seed(args.seed)
    head = UnionHead(foundation.embedding_width)
    train_union_head(
        head,
        queries=torch.cat(queries),
        image_features=features,
        null_features=foundation.encode_null().detach(),
        targets=torch.tensor([numbers[triplet.target] for triplet in triplets]),
        answers=torch.arange(len(targets)),
        config=UnionConfig(batch=args.batch),
        loop=LoopConfig(folder=args.work / "union", steps=steps, seed=args.seed),
    )
    save_union_head(args.out, head, {"word_space": foundation.word_space(), "foundation": foundation.name})
    print(f"UNION head: {args.out}")
    return 0


def _read_lines(path: Path | None) -> list[str]:
    from asymcir_training.errors import DataError

    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read {path}: {exc}") from exc
    return [line for line in lines if line]
