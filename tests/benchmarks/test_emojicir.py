from collections import Counter

from asymcir_benchmarks import derive_triplets
from asymcir_benchmarks.emojicir import FAMILIES

NAMES = [
    "woman",
    "man",
    "person",
    "woman: dark skin tone",
    "woman: red hair",
    "woman: dark skin tone, red hair",
    "red heart",
    "blue heart",
    "light blue heart",
    "man farmer",
    "woman farmer",
    "farmer",
    "cat face",
    "crying cat",
    "pouting cat",
    "up arrow",
    "down arrow",
    "person walking",
    "person walking: facing right",
    "three o\u2019clock",
    "two-thirty",
    "rocket",
]


def _derive() -> set[tuple[str, str, str, str]]:
    found = derive_triplets({name.replace(" ", "-"): name for name in NAMES})
    return {(t.reference, t.modifier, t.target, t.family) for t in found}


def test_each_family_has_the_triplets_that_its_rule_says() -> None:
    found = _derive()
    for expected in [
        ("woman", "has dark skin tone", "woman:-dark-skin-tone", "skin tone"),
        ("woman", "has red hair", "woman:-red-hair", "hair"),
        ("woman:-dark-skin-tone", "has red hair", "woman:-dark-skin-tone,-red-hair", "hair"),
        ("red-heart", "is blue", "blue-heart", "colour"),
        ("blue-heart", "is light blue", "light-blue-heart", "colour"),
        ("man-farmer", "is a woman", "woman-farmer", "gender"),
        ("farmer", "is a man", "man-farmer", "gender"),
        ("person", "is a woman", "woman", "gender"),
        ("cat-face", "is crying", "crying-cat", "cat expression"),
        ("crying-cat", "is pouting", "pouting-cat", "cat expression"),
        ("up-arrow", "points down", "down-arrow", "direction"),
        ("person-walking", "is facing right", "person-walking:-facing-right", "direction"),
        ("two-thirty", "shows three o'clock", "three-o\u2019clock", "clock"),
    ]:
        assert expected in found
    assert {family for *_, family in found} == set(FAMILIES)


def test_nothing_is_its_own_answer_and_nothing_comes_twice() -> None:
    found = derive_triplets({name.replace(" ", "-"): name for name in NAMES})
    assert all(triplet.reference != triplet.target for triplet in found)
    assert max(Counter((t.reference, t.modifier, t.target) for t in found).values()) == 1


def test_names_without_a_counterpart_give_nothing() -> None:
    assert derive_triplets({"rocket": "rocket", "red-apple": "red apple"}) == []
