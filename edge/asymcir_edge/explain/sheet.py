"""The page of an explanation: HTML without scripts and without anything from elsewhere."""

import html
import json
from collections.abc import Iterable, Mapping

from asymcir_common.html_pages import embed_file, embed_image, lay_out_table, paint_map, render_document
from PIL import Image

from asymcir_edge.explain.gathering import Answer, Explanation
from asymcir_edge.remote.answers import SearchHit

_STYLE = """
ol.row { list-style: none; padding: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)) }
.layers { position: relative; aspect-ratio: 1; background: #fff }
.layers img { position: absolute; width: 100%; height: 100%; display: block }
.layers img:first-child { filter: grayscale(.75) } .words { font-size: .85rem; line-height: 1.35 }
.two { display: grid; gap: 2rem; grid-template-columns: 1fr 1fr } .two h3 { margin: 0 }
.hits { padding: 0; list-style: none } .hits li { display: flex; gap: .6rem; align-items: center; padding: .25rem 0;
  border-bottom: 1px solid var(--line) } .hits img { width: 3rem; height: 3rem; object-fit: contain; background: #fff }
.hits .score { margin-left: auto; font-variant-numeric: tabular-nums; color: var(--soft) }
.hits .new span:first-of-type { font-weight: 600 }
"""


def render_sheet(
    explanation: Explanation, *, title: str, thumbnails: Mapping[str, bytes] | None = None, words_from: str = ""
) -> str:
    """Write the page.

    Args:
        explanation: what it shows.
        title: of the page, plain text.
        thumbnails: id -> WebP file, for the answers.
        words_from: the server bundle whose vocabulary was searched, plain text.
    """
    body = [*_looks(explanation, words_from), *_effects(explanation), *_answers(explanation, thumbnails or {})]
    return render_document(title, body, style=_STYLE)


def _looks(explanation: Explanation, words_from: str) -> Iterable[str]:
    picture = embed_image(Image.fromarray(explanation.square))
    yield "<h2>What the sentence looks at</h2>"
    yield (
        "<p>The part of the picture that the encoder sees, and what each token looks at; the largest weight of a map "
        "is the deepest red.</p>"
    )
    cells = [f'<li><div class="layers"><img src="{picture}" alt="the picture" style="filter: none"></div>picture</li>']
    for number, weights in enumerate(explanation.maps, start=1):
        heat = embed_image(paint_map(weights), "png")
        near = explanation.words[number - 1] if explanation.words else ()
        words = ", ".join(f"{html.escape(word)} {cosine:.2f}" for word, cosine in near)
        below = f'<div class="soft words">{words}</div>' if words else ""
        cells.append(
            f'<li><div class="layers"><img src="{picture}" alt=""><img src="{heat}" alt="what token {number} looks at">'
            f"</div>token {number}{below}</li>"
        )
    yield f'<ol class="row">{"".join(cells)}</ol>'
    if explanation.words:
        yield (
            f"<p>Below each token are the nearest words in the vocabulary of {html.escape(words_from)}, with the "
            "cosine of their embeddings. Tokens are points of that space, not words: a low cosine says that no word is "
            "near."
            "</p>"
        )


def _effects(explanation: Explanation) -> Iterable[str]:
    if not explanation.effects:
        return
    count = len(explanation.after.hits)
    measured = explanation.effects[0].moved is not None
    head = [
        "left out",
        *(["moves the query by (1 - cosine)"] if measured else []),
        f"other answers, of {count}",
        "first then",
    ]
    rows = []
    for effect in explanation.effects:
        moved = [] if effect.moved is None else [f"{effect.moved:.4f}"]
        first = "-" if effect.first is None else _name_of(effect.first)
        rows.append([f"“{effect.word}”" if effect.word else "all of it", *moved, str(effect.replaced), first])
    yield f"<h2>What the words of “{html.escape(explanation.after.change)}” do</h2>"
    yield lay_out_table(rows, head=head)


def _answers(explanation: Explanation, thumbnails: Mapping[str, bytes]) -> Iterable[str]:
    yield "<h2>Answers</h2>"
    before, after = explanation.before, explanation.after
    shown = [("The picture alone", before, {hit.id for hit in before.hits})]
    if explanation.effects:
        shown.append((f"With “{after.change}”", after, {hit.id for hit in before.hits}))
    columns = [
        f"<div><h3>{html.escape(name)}</h3>{_list(answer, known, thumbnails)}</div>" for name, answer, known in shown
    ]
    yield f'<div class="two">{"".join(columns)}</div>'
    if explanation.effects:
        yield "<p>In bold: answers that the picture alone does not have.</p>"


def _list(answer: Answer, known: set[str], thumbnails: Mapping[str, bytes]) -> str:
    lines = []
    for hit in answer.hits:
        data = thumbnails.get(hit.id)
        image = f'<img src="{embed_file(data, "image/webp")}" alt="">' if data else ""
        mark = "" if hit.id in known else ' class="new"'
        lines.append(
            f'<li{mark}>{image}<span>{html.escape(_name_of(hit))}</span><span class="score">{hit.score:.3f}</span></li>'
        )
    return f'<ol class="hits">{"".join(lines)}</ol>'


def _name_of(hit: SearchHit) -> str:
    name = (hit.metadata or {}).get("name", hit.id)
    return name if isinstance(name, str) else json.dumps(name)
