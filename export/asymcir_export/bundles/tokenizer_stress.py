"""Texts that break tokenizers: seeded, so that every export compares the same ones."""

import random
from collections.abc import Callable, Iterator

STRESS_COUNT = 10_000

_PROSE = (
    "the same but in red with long sleeves and a hood cat crying heart blue clock half past two thumbs up dark skin "
    "tone isn't we're they've I'll you'd i'm what's O'Neill rock'n'roll state-of-the-art e.g. U.S.A. 4x4 mp3 COVID-19 "
    "naïve café Ångström straße \ufb01ne \u017ftill İstanbul ΣΊΣΥΦΟΣ Привет мир γειά \u03c3\u03bf\u03c5 xin chào dağ"
)
_WORDS = _PROSE.split()
_SPACES = " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2009\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
_ESCAPED = (
    "&amp; &lt;b&gt; &quot;red&quot; &#39; &#x27; &nbsp; &eacute; &amp;amp; &amp;lt; &amp;amp;amp;lt; &notanentity; "
    "&#128512; &#0; &copy"
)
_ENTITIES = _ESCAPED.split()
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…—\u2013\u2018\u2019“”«»¿¡•™©®°±\xd7÷€£¥§¶†‡№※"
_JOINED_EMOJI = (
    "👩🏽\u200d🦰",
    "👨\u200d👩\u200d👧\u200d👦",
    "🏳️\u200d🌈",
    "👍🏿",
    "🇻🇳",
    "🇨🇦",
    "1️⃣",
    "❤️\u200d🔥",
    "☃️",
    "🫠",
)
_FIXED = ("", " ", "\x00", "a", "</w>", "'", "''s", "'\u017f", "\u0130", "&#0;", "\ufffd", "a" * 5000)
_RANGES = {
    "cjk": ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2EBF0, 0x2EE5D), (0x31350, 0x323AF)),
    "kana_hangul": ((0x3040, 0x30FF), (0xAC00, 0xD7A3), (0x1100, 0x11FF), (0xFF00, 0xFFEF)),
    "rtl": ((0x0590, 0x05FF), (0x0600, 0x06FF), (0x0750, 0x077F), (0x200E, 0x200F), (0x202A, 0x202E)),
    "indic": ((0x0900, 0x0DFF), (0x0E00, 0x0FFF), (0x1000, 0x109F)),
    "combining": ((0x0300, 0x036F), (0x1AB0, 0x1AFF), (0x20D0, 0x20FF), (0x0041, 0x007A)),
    "emoji": ((0x1F300, 0x1FAFF), (0x2600, 0x27BF), (0xFE0E, 0xFE0F), (0x1F3FB, 0x1F3FF), (0x200D, 0x200D)),
    "controls": ((0x00, 0x1F), (0x7F, 0x9F), (0x2000, 0x200F), (0x2060, 0x206F), (0xE0000, 0xE007F)),
    "numbers": ((0x30, 0x39), (0x660, 0x669), (0x2150, 0x218B), (0x2460, 0x24FF), (0x1D7CE, 0x1D7FF), (0xB2, 0xB3)),
    "latin": ((0x20, 0x7E), (0xA0, 0x24F), (0x1E00, 0x1EFF), (0xFB00, 0xFB06)),
    "any": ((0x00, 0xD7FF), (0xE000, 0xFFFD), (0x10000, 0x1FFFF), (0x20000, 0x323AF), (0xE0000, 0x10FFFF)),
}


def stress_texts(count: int, *, seed: int) -> Iterator[str]:
    """Yield `count` texts: prose, entities, emoji, scripts, control characters, very long words, spaces of all kinds.

    None is the name of a special token, which `tokenizer.json` deliberately reads as text.
    """
    random_ = random.Random(seed)
    makers: list[Callable[[random.Random], str]] = [_prose, _mixed_case, _entities, _punctuation, _emoji, _spaces]
    makers += [_long_word, _digits, *(_from_ranges(name) for name in _RANGES), _mixture]
    yield from _FIXED[:count]
    for index in range(count - len(_FIXED)):
        yield makers[index % len(makers)](random_)


def _prose(random_: random.Random) -> str:
    return " ".join(random_.choices(_WORDS, k=random_.randint(1, 20)))


def _mixed_case(random_: random.Random) -> str:
    return "".join(random_.choice((character.upper(), character.lower())) for character in _prose(random_))


def _entities(random_: random.Random) -> str:
    return random_.choice(("", " ")).join(random_.choices((*_ENTITIES, *_WORDS[:8]), k=random_.randint(1, 12)))


def _punctuation(random_: random.Random) -> str:
    return "".join(random_.choices((*_PUNCTUATION, *_WORDS[:20], " "), k=random_.randint(1, 24)))


def _emoji(random_: random.Random) -> str:
    return "".join(random_.choices((*_JOINED_EMOJI, *_WORDS[:6], " "), k=random_.randint(1, 12)))


def _spaces(random_: random.Random) -> str:
    return "".join(random_.choices((*_SPACES, *_WORDS[:12]), k=random_.randint(1, 20)))


def _long_word(random_: random.Random) -> str:
    alphabet = random_.choice(("abcdefghijklmnopqrstuvwxyz", "ab", "éüñ", "漢字仮名", "0123456789", "!?#"))
    return "".join(random_.choices(alphabet, k=random_.randint(50, 400)))


def _digits(random_: random.Random) -> str:
    return random_.choice(("", "-", "$", "€")) + f"{random_.uniform(0, 10 ** random_.randint(1, 12)):,.3f}"


def _from_ranges(name: str) -> Callable[[random.Random], str]:
    ranges = _RANGES[name]

    def make(random_: random.Random) -> str:
        points = (random_.randint(*random_.choice(ranges)) for _ in range(random_.randint(1, 30)))
        return "".join(map(chr, points))

    return make


def _mixture(random_: random.Random) -> str:
    parts = [random_.choice((_prose, _punctuation, _emoji, _entities, _spaces, _digits))(random_) for _ in range(3)]
    return random_.choice((" ", "")).join(parts)
