"""EmojiCIR triplets: composed queries with ground truth, derived by rule from emoji names.

A triplet says: this picture, changed so, is that concept. The rules read names alone ("woman: dark skin tone", "blue
heart", "two-thirty"), so every answer can be checked by eye, and none was written by hand.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

FAMILIES = ("skin tone", "hair", "colour", "gender", "cat expression", "direction", "clock")

APOSTROPHE = "\u2019"  # as OpenMoji writes "three o'clock"

_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "brown",
    "black",
    "white",
    "pink",
    "grey",
    "light blue",
)
_HAIR = {
    "red hair": "has red hair",
    "curly hair": "has curly hair",
    "white hair": "has white hair",
    "blond hair": "has blond hair",
    "bald": "is bald",
    "beard": "has a beard",
}
_CATS = {
    "grinning cat": "is grinning",
    "grinning cat with smiling eyes": "is grinning with smiling eyes",
    "cat with tears of joy": "is laughing with tears of joy",
    "smiling cat with heart-eyes": "is smiling with heart eyes",
    "cat with wry smile": "has a wry smile",
    "kissing cat": "is kissing",
    "weary cat": "is weary",
    "crying cat": "is crying",
    "pouting cat": "is pouting",
}
_DIRECTIONS = {
    "up": "points up",
    "down": "points down",
    "left": "points left",
    "right": "points right",
    "up-right": "points up and right",
    "up-left": "points up and left",
    "down-right": "points down and right",
    "down-left": "points down and left",
}
_HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_CLOCK_STEPS = (1, 2, 3, 4, 6, 7, 11, 12)
"""Each clock face is asked for from the faces so many half hours before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Triplet:
    """One composed query.

    Attributes:
        reference: slug of the concept that the query picture shows.
        modifier: the change, to stand after "a photo of <picture> that".
        target: slug of the concept that answers.
        family: one of FAMILIES.
        split: which concepts the target is of, "dev", "test", "novel" or "shown"; empty where nobody has said.
    """

    reference: str
    modifier: str
    target: str
    family: str
    split: str = ""


def derive_triplets(names: Mapping[str, str]) -> list[Triplet]:
    """Derive every triplet from slug -> name, in a fixed order, without duplicates."""
    by_name = {name.lower().replace(APOSTROPHE, "'"): slug for slug, name in names.items()}
    rules = (_skin_tones, _hair, _colours, _genders, _cats, _directions, _clocks)
    found: dict[tuple[str, str, str], Triplet] = {}
    for rule, family in zip(rules, FAMILIES, strict=True):
        for reference, modifier, target in rule(by_name):
            if reference != target and reference in by_name and target in by_name:
                triplet = Triplet(
                    reference=by_name[reference], modifier=modifier, target=by_name[target], family=family
                )
                found.setdefault((triplet.reference, triplet.modifier, triplet.target), triplet)
    return list(found.values())


_Rule = Iterator[tuple[str, str, str]]


def _skin_tones(names: Iterable[str]) -> _Rule:
    """Figure, plain or in the tone two steps further on -> the figure in one skin tone."""
    for name in names:
        for number, tone in enumerate(_TONES):
            suffix = f": {tone} skin tone"
            if name.endswith(suffix):
                figure = name.removesuffix(suffix)
                other = _TONES[(number + 2) % len(_TONES)]
                yield figure, f"has {tone} skin tone", name
                yield f"{figure}: {other} skin tone", f"has {tone} skin tone", name


def _hair(names: Iterable[str]) -> _Rule:
    """Figure, in any skin tone, plain or with other hair -> the same with this hair."""
    for name in names:
        for hair, modifier in _HAIR.items():
            for joint in (": ", ", "):
                if name.endswith(joint + hair):
                    figure = name.removesuffix(joint + hair)
                    yield figure, modifier, name
                    for other in _HAIR:
                        yield f"{figure}{joint}{other}", modifier, name


def _colours(names: Iterable[str]) -> _Rule:
    """Coloured thing -> the same thing in another colour."""
    known = set(names)
    for name in names:
        colour, noun = _split_colour(name)
        if not colour:
            continue
        for other in _COLOURS:
            if f"{other} {noun}" in known and other != colour:
                yield f"{other} {noun}", f"is {colour}", name


def _split_colour(name: str) -> tuple[str, str]:
    for colour in sorted(_COLOURS, key=len, reverse=True):
        if name.startswith(colour + " "):
            return colour, name.removeprefix(colour + " ")
    return "", name


def _genders(names: Iterable[str]) -> _Rule:
    """Man in a role -> woman in the same role and skin tone, and back; and the neutral person -> either."""
    for name in names:
        for word, others in (("woman", ("man", "person")), ("man", ("woman", "person"))):
            match = re.fullmatch(rf"{word}( .+|:.+|)", name)
            if match is None:
                continue
            rest = match.group(1)
            for other in others:
                yield f"{other}{rest}", f"is a {word}", name
            if rest.startswith(" "):
                yield rest.strip(), f"is a {word}", name


def _cats(names: Iterable[str]) -> _Rule:
    """Cat face -> cat face with another expression."""
    del names
    for reference in ("cat face", *_CATS):
        for target, modifier in _CATS.items():
            yield reference, modifier, target


def _directions(names: Iterable[str]) -> _Rule:
    """Arrow or figure -> the same, turned."""
    for name in names:
        if name.endswith("facing right"):
            yield re.sub(r":? facing right$|, facing right$", "", name), "is facing right", name
        match = re.fullmatch(r"(up|down|left|right|up-right|up-left|down-right|down-left) arrow", name)
        if match:
            for other in _DIRECTIONS:
                yield f"{other} arrow", _DIRECTIONS[match.group(1)], name
        match = re.fullmatch(r"backhand index pointing (up|down|left|right)(.*)", name)
        if match:
            for other in ("up", "down", "left", "right"):
                yield f"backhand index pointing {other}{match.group(2)}", _DIRECTIONS[match.group(1)], name


def _clocks(names: Iterable[str]) -> _Rule:
    """Clock face -> clock face at another time."""
    del names
    faces = [face for hour in _HOURS for face in (f"{hour} o'clock", f"{hour}-thirty")]
    words = [word for hour in _HOURS for word in (f"shows {hour} o'clock", f"shows half past {hour}")]
    for number, (face, modifier) in enumerate(zip(faces, words, strict=True)):
        for step in _CLOCK_STEPS:
            yield faces[number - step], modifier, face
