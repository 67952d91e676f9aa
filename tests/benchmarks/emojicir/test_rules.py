from collections import Counter

import pytest
from asymcir_benchmarks import derive_triplets
from asymcir_benchmarks.emojicir.rules import FAMILIES

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


def _changes(names: list[str]) -> set[tuple[str, str, str]]:
    return {(t.reference, t.modifier, t.target) for t in derive_triplets({name: name for name in names})}


def test_a_skin_tone_is_asked_for_from_the_plain_figure_and_from_the_tone_two_steps_on() -> None:
    tones = [f"elf: {tone} skin tone" for tone in ("light", "medium-light", "medium", "medium-dark", "dark")]
    found = _changes(["elf", *tones])
    expected = {("elf", f"has {tone.removeprefix('elf: ')}", tone) for tone in tones}
    expected |= {(tones[(i + 2) % 5], f"has {tone.removeprefix('elf: ')}", tone) for i, tone in enumerate(tones)}
    assert found == expected and len(found) == 10


def test_hair_is_asked_for_from_other_hair_of_the_same_skin_tone() -> None:
    found = _changes(["man: dark skin tone, bald", "man: dark skin tone, red hair", "man: light skin tone, red hair"])
    assert found == {
        ("man: dark skin tone, bald", "has red hair", "man: dark skin tone, red hair"),
        ("man: dark skin tone, red hair", "is bald", "man: dark skin tone, bald"),
    }


def test_a_clock_face_is_asked_for_from_eight_others() -> None:
    hours = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    faces = [face for hour in hours for face in (f"{hour} o\u2019clock", f"{hour}-thirty")]
    found = {reference for reference, _, target in _changes(faces) if target == "two o\u2019clock"}
    place = faces.index("two o\u2019clock")
    assert found == {faces[place - step] for step in (1, 2, 3, 4, 6, 7, 11, 12)} and len(found) == 8


@pytest.mark.parametrize("names", [NAMES, ["elf", "elf: dark skin tone"]])
def test_a_derived_triplet_has_no_split(names: list[str]) -> None:
    assert {triplet.split for triplet in derive_triplets({name: name for name in names})} == {""}
