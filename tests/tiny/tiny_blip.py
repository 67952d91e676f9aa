"""A tiny random BLIP retrieval model, saved as transformers saves the published ones."""

import string
from pathlib import Path

import torch
from tiny_foundations import EMBEDDING_WIDTH, WORD_WIDTH
from transformers import BertTokenizerFast, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor

SIDE, PATCH, VISION_WIDTH = 32, 8, 40
PATCHES = (SIDE // PATCH) ** 2
CONTEXT = 64
_WORDS = ("photo", "that", "of", "is", "has", "cat", "dog", "red", "blue", "##ing", "中", "é")


def write_blip(folder: Path, *, seed: int = 5) -> Path:
    """Write the model, BERT's kind of tokenizer with few words, and the processor's configuration."""
    tokenizer = BertTokenizerFast(vocab={piece: index for index, piece in enumerate(_pieces())})
    tokenizer.save_pretrained(folder)
    BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    build_blip(seed=seed).save_pretrained(folder)
    return folder


def build_blip(*, seed: int = 5) -> BlipForImageTextRetrieval:
    """Build the model: weights large enough that pictures and words show in what it answers."""
    torch.manual_seed(seed)
    words = len(_pieces())
    config = BlipConfig(
        text_config={
            "vocab_size": words + 2,  # [DEC] and [ENC], as published
            "bos_token_id": words,
            "sep_token_id": 3,
            "hidden_size": WORD_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": CONTEXT,
        },
        vision_config={
            "hidden_size": VISION_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 80,
            "image_size": SIDE,
            "patch_size": PATCH,
        },
        image_text_hidden_size=EMBEDDING_WIDTH,
    )
    model = BlipForImageTextRetrieval(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                torch.nn.init.normal_(value, std=0.5 if "embed" in name else 0.15)
            elif name.endswith("bias"):
                torch.nn.init.normal_(value, std=0.1)
    return model


def _pieces() -> list[str]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [character for character in string.printable if not character.isspace()]
    return [*special, *letters, *(f"##{letter}" for letter in string.ascii_lowercase), *_WORDS]
