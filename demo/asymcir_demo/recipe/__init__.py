"""How the embedded default is made, step by step; `python -m asymcir_demo.recipe` runs all of it."""

FOUNDATION_NAME = "asymcir-demo (MiniLM-L6 + EfficientNet-Lite0)"

SOURCES = (
    {
        "name": "all-MiniLM-L6-v2 (text tower)",
        "licence": "Apache-2.0",
        "url": "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    },
    {
        "name": "EfficientNet-Lite0, ImageNet weights (visual tower and light encoder, trained further)",
        "licence": "Apache-2.0",
        "url": "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
    },
    {"name": "Noto Emoji", "licence": "Apache-2.0", "url": "https://github.com/googlefonts/noto-emoji"},
    {"name": "Fluent Emoji", "licence": "MIT", "url": "https://github.com/microsoft/fluentui-emoji"},
    {"name": "Noto Emoji, first version", "licence": "Apache-2.0", "url": "https://github.com/googlefonts/noto-emoji"},
    {"name": "FxEmoji", "licence": "Apache-2.0", "url": "https://github.com/mozilla/fxemoji"},
    {"name": "EmojiOne 1", "licence": "CC-BY-SA-4.0", "url": "https://github.com/joypixels/emojione-legacy"},
    {"name": "EmojiOne 2 (EmojiTwo)", "licence": "CC-BY-4.0", "url": "https://github.com/EmojiTwo/emojitwo"},
    {"name": "OpenMoji", "licence": "CC-BY-SA-4.0", "url": "https://openmoji.org"},
    {
        "name": "Twemoji (query pictures only, never trained on)",
        "licence": "CC-BY-4.0",
        "url": "https://github.com/jdecked/twemoji",
    },
)
"""Where the demo's weights and pictures come from, for the bundles' manifests."""
