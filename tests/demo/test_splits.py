from collections import Counter

import pytest
from asymcir_benchmarks import Triplet
from asymcir_demo.recipe.splits import SPLITS, components, draw_splits, show_change, tone_free

SHARES = {"train": 0.58, "dev": 0.12, "test": 0.20, "novel": 0.10}


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("man: dark skin tone, beard", "man: beard"),
        ("kiss: woman, man, dark skin tone, light skin tone", "kiss: woman, man"),
        ("woman: medium-dark skin tone", "woman"),
        ("people holding hands: light skin tone, medium-light skin tone", "people holding hands"),
        ("woman: red hair", "woman: red hair"),
        ("light bulb", "light bulb"),
    ],
)
def test_skin_tones_go_and_nothing_else(name: str, plain: str) -> None:
    assert tone_free(name) == plain


def test_components_join_by_name_and_by_drawing_across_styles() -> None:
    names = {
        "runner": "person running",
        "runner-dark": "person running: dark skin tone",
        "man-runner": "man running",
        "man-runner-light": "man running: light skin tone",
        "athlete": "athlete",
        "cat": "cat",
        "dog": "dog",
    }
    drawings = [
        {"runner-dark": b"1", "man-runner": b"1", "cat": b"2", "dog": b"3"},
        # The same bytes in another style mean another drawing; "man-runner-light" leads on to "athlete".
        {"cat": b"1", "dog": b"2", "man-runner-light": b"4", "athlete": b"4", "unnamed": b"2"},
    ]
    names = {slug: tone_free(name) for slug, name in names.items()}
    found = components(names, drawings)
    assert found == {
        **dict.fromkeys(("runner", "runner-dark", "man-runner", "man-runner-light", "athlete"), "athlete"),
        "cat": "cat",
        "dog": "dog",
    }
    backwards = [dict(reversed(style.items())) for style in reversed(drawings)]
    assert components(dict(reversed(names.items())), backwards) == found
    apart = components(names, [])
    assert apart["runner"] == apart["runner-dark"] == "person running" != apart["man-runner"]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_splits_keep_their_shares_within_every_subgroup(size: int) -> None:
    groups = {f"{group} {i}": group for group in ("cat-face", "arrow", "clothing") for i in range(size)}
    splits = draw_splits(groups)
    assert splits.keys() == groups.keys() and set(splits.values()) <= set(SPLITS)
    for group in set(groups.values()):
        counts = Counter(splits[name] for name, its in groups.items() if its == group)
        assert all(abs(counts[split] - share * size) <= 1.0 for split, share in SHARES.items())


def test_the_draw_is_fixed_and_one_subgroup_does_not_move_another() -> None:
    arrows = {f"arrow {i}": "arrow" for i in range(30)}
    alone = draw_splits(arrows)
    assert draw_splits(arrows) == alone
    together = draw_splits({"cat": "cat-face", **arrows, "dog": "animal"})
    assert {name: together[name] for name in arrows} == alone
    assert set(alone.values()) == set(SPLITS)


def test_a_change_that_nobody_can_see_is_no_query() -> None:
    seen = Triplet(reference="a", modifier="is red", target="b", family="colour")
    unseen = Triplet(reference="a", modifier="has dark skin tone", target="c", family="skin tone")
    assert show_change([seen, unseen], {"a": {"a", "c"}, "b": {"b"}, "c": {"a", "c"}}) == [seen]
    assert show_change([seen, unseen], {}) == [seen, unseen]
