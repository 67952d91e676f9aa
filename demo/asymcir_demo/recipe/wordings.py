"""The words of the recipe: how a concept may be called, which style can show it, and the texts of the distillation."""

import re

from asymcir_benchmarks import derive_triplets
from asymcir_benchmarks.emojicir.rules import APOSTROPHE

from asymcir_demo.recipe.concepts import COLOURLESS_STYLES, Concept

KEYWORDS_PER_CONCEPT = 3
GENERAL_MODIFIERS = (
    "is small", "is big", "is old", "is young", "is new", "is broken", "is open", "is closed", "is empty", "is full",
    "is smiling", "is crying", "is laughing", "is angry", "is sad", "is sleeping", "is surprised", "is scared",
    "is sick", "is running", "is walking", "is standing", "is sitting", "is flying", "is swimming", "is dancing",
    "is working", "is wearing a hat", "is wearing glasses", "holds a book", "holds a flower", "holds a heart",
    "plays music", "has wings", "has a tail", "has long hair", "has a crown", "has two people", "has children",
    "has a heart", "is on fire", "is in water", "is in the snow", "is at night", "is in the sun", "is made of wood",
    "is made of metal", "is a girl", "is a boy", "is a child", "is an animal", "is a food", "is a building",
    "is a vehicle", "is a tool", "is round", "is square", "is striped", "is a face", "is a flag", "is upside down",
    "is crossed out",
)  # fmt: skip
_COLOUR = re.compile(r"(light )?(red|orange|yellow|green|blue|purple|brown|black|white|pink|grey) ")


def word_names(concept: Concept, unsaid: frozenset[str] = frozenset()) -> list[str]:
    """Word a concept's name in several ways: "woman: red hair" -> "woman with red hair", ...

    Args:
        concept: what to name.
        unsaid: keywords to leave out, in lower case: names of concepts that must stay unseen.
    """
    head, _, tail = concept.name.partition(": ")
    plain = f"{head} with {tail}" if tail else head
    plain = re.sub(r"\s+", " ", plain)
    detailed = f"{head} that has {tail}" if tail else head
    keywords = ", ".join([word for word in concept.keywords if word.lower() not in unsaid][:KEYWORDS_PER_CONCEPT])
    return [
        plain,
        f"a photo of {plain}",
        f"a photo of {detailed}",
        f"{plain}: {keywords}" if keywords else concept.name,
        describe(concept.name) or f"a drawing of {plain}",
    ]


def describe(name: str) -> str:
    """Say what a picture shows where its name does not: "two-thirty" -> "a clock that shows half past two"."""
    name = name.lower().replace(APOSTROPHE, "'")
    if match := re.fullmatch(r"(\w+)-thirty", name):
        return f"a clock that shows half past {match.group(1)}"
    if name.endswith(" o'clock"):
        return f"a clock that shows {name}"
    if match := re.fullmatch(r"(up|down|left|right)-?(left|right)? arrow", name):
        return "an arrow that points " + " and ".join(part for part in match.groups() if part)
    if match := _COLOUR.match(name):
        return f"a {name[match.end() :]} that is {match.group().strip()}"
    return ""


def plain_names(concept: Concept) -> set[str]:
    """Return the name in lower case as it is and as `word_names` puts it, to keep it out of other concepts' words."""
    return {concept.name.lower(), word_names(concept)[0].lower()}


def draws_its_name(concept: Concept, style: str) -> bool:
    """Whether a style's picture shows what its name says: without colour, no skin tone, colour or flag does."""
    return style not in COLOURLESS_STYLES or not (
        "skin tone" in concept.name or concept.group == "flags" or _COLOUR.match(concept.name)
    )


def phrase_bank(concepts: list[Concept]) -> list[str]:
    """List the names and keywords of the training concepts, each once, without the names of the others."""
    held_out = {wording for concept in concepts if concept.split != "train" for wording in plain_names(concept)}
    phrases: dict[str, None] = {}
    for concept in concepts:
        if concept.split == "train":
            for phrase in (word_names(concept)[0], *concept.keywords):
                if phrase.lower() not in held_out:
                    phrases.setdefault(phrase)
    return list(phrases)


def modifier_bank(concepts: list[Concept]) -> list[str]:
    """List the changes that composition consistency draws from: general ones, and those that seen concepts show."""
    triplets = derive_triplets({concept.slug: concept.name for concept in concepts if concept.split == "train"})
    return list(dict.fromkeys([*(triplet.modifier for triplet in triplets), *GENERAL_MODIFIERS]))
