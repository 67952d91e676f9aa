"""Prompt templates, in one place for training and for the server bundle's manifest.

Source: the templates of public ZS-CIR code (SEARLE, LinCIR); UNION's null text is the empty string (arXiv:2511.22253).
"""

TOKENS_PROMPT = "a photo of {tokens}"
TOKENS_MODIFIER_PROMPT = "a photo of {tokens} that {modifier}"
NULL_PROMPT = ""

PROMPTS = {"tokens": TOKENS_PROMPT, "tokens_modifier": TOKENS_MODIFIER_PROMPT, "null": NULL_PROMPT}
