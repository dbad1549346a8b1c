"""``report.html``: the scores, single samples with their pictures or sounds, charts and the recipe, in one file that
needs no other and runs nothing.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from mmformer.data.dataset import SampleDataset
from mmformer.evaluation.charts import MOST_CLASSES, draw_confusion, draw_curves
from mmformer.evaluation.details import Case, Classified, Details, worst_first
from mmformer.evaluation.measure import Measured
from mmformer.evaluation.reading import open_split

SHOWN = 12
"""Best cases, and worst ones, of each metric."""

CURVES = 8
"""Classes whose precision–recall is drawn: those with the lowest average precision."""

_SIDE = 256
"""Pixels of the longer side of a sample's picture at most: twice what is shown, for screens of small pixels."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #23211d; background: #f4f2ee; max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.25rem; margin-top: 2.5rem } h3 { font-size: 1rem; margin: 1.5rem 0 .5rem }
section { background: #fff; border: 1px solid #e2ded6; border-radius: 12px; padding: .5rem 1.25rem 1.25rem }
table { border-collapse: collapse } td, th { padding: .2rem .9rem .2rem 0; text-align: left }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums } .faint { color: #8a857b }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .75rem }
.case { border: 1px solid #e2ded6; border-radius: 8px; padding: .5rem; font-size: .85rem; overflow-wrap: anywhere }
.case img { width: 100%; height: 128px; object-fit: contain; image-rendering: auto } .chart { max-width: 100% }
.case audio { width: 100% }
.way { font-size: 1.1rem; margin-top: 2.5rem } .said { font-weight: 600 } pre { overflow-x: auto; font-size: .8rem }
"""


def write_report(path: Path, measured: Measured) -> None:
    """Write the report of an evaluation."""
    recipe = measured.recipe
    samples = open_split(measured.data, str(recipe["data"]["split"]))
    source = f"{recipe['data']['source']}, split {recipe['data']['split']}, {recipe['data']['samples']:,} samples"
    parts = [
        f"<h1>{_text(recipe['bundle']['path'])}</h1>",
        f'<p class="faint">measured on {_text(source)}, in {recipe["dtype"]}</p>',
        _section("Scores", _scores(measured)),
    ]
    for name, details in measured.details.items():
        shown = _details(details, samples)
        if shown:
            parts.append(_section(name.replace("_", " "), shown))
    shown_recipe = {key: value for key, value in recipe.items() if key != "classes"}
    parts.append(_section("Recipe", f"<pre>{_text(json.dumps(shown_recipe, indent=1, ensure_ascii=False))}</pre>"))
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(recipe['bundle']['path'])}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _scores(measured: Measured) -> str:
    rows = [
        f'<tr><td>{_text(name)}</td><td class="number">{score.text}</td>'
        f'<td class="number faint">{score.shown(score.chance)}</td></tr>'
        for name, score in measured.scores.items()
    ]
    head = '<tr><th>score</th><th class="number">value</th><th class="number faint">chance</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _details(details: Details, samples: SampleDataset) -> str:
    parts = [f"<p>{_text(key)}: {_text(value)}</p>" for key, value in details.notes.items()]
    if details.classified is not None:
        parts.append(_classified(details.classified))
    order = worst_first(details.cases)
    number = min(SHOWN, len(order) // 2)
    for title, cases in (("Worst", order[:number]), ("Best", order[::-1][:number])):
        if cases:
            parts.append(f'<h3>{title} <span class="faint">by {_text(details.measure)}</span></h3>')
            parts.append(_cases(cases, samples))
    for way, own in details.ways.items():
        parts.append(f'<h3 class="way">{_text(way.replace("_to_", " → ").replace("_", " "))}</h3>')
        parts.append(_details(own, samples))
    return "".join(parts)


def _cases(cases: Sequence[Case], samples: SampleDataset) -> str:
    cards = []
    for case in cases:
        own = _sample(samples, case.number)
        found = _sample(samples, case.found) if case.found not in (None, case.number) else ""
        cards.append(
            f'<div class="case">{own}<div class="said">{_text(case.said)}</div>{found}<div>{_text(case.right)}</div>'
            f'<div class="faint">{_text(case.key)} · {case.goodness:.3g}</div></div>'
        )
    return (
        '<p class="faint">Said in bold, with the picture that was found, if it is another one; what is right under it.'
        f'</p><div class="cases">{"".join(cards)}</div>'
    )


def _sample(samples: SampleDataset, number: int | None) -> str:
    """A sample's picture, no larger than it is shown, or its sound where it has none."""
    sample = samples[number] if number is not None else None
    if sample is None:
        return ""
    if sample.image is not None:
        image = Image.fromarray(sample.image)
        image.thumbnail((_SIDE, _SIDE))
        return _picture(image, sample.key)
    spec = samples.spec.audio
    return "" if sample.audio is None or spec is None else _sound(sample.audio, spec.transform.rate)


def _sound(sound: np.ndarray, rate: int) -> str:
    """A FLAC within the page."""
    data = io.BytesIO()
    soundfile.write(data, sound, rate, format="FLAC")
    return f'<audio controls src="data:audio/flac;base64,{base64.b64encode(data.getvalue()).decode()}"></audio>'


def _classified(classified: Classified) -> str:
    title = "Confusion matrix"
    if len(classified.classes) > MOST_CLASSES:
        title += f" of the {MOST_CLASSES} classes of {len(classified.classes)} that are confused most"
    parts = [f"<h3>{title}</h3>", _picture(draw_confusion(classified), title, "chart")]
    named = zip(classified.classes, classified.curves, strict=True)
    curves = sorted(((name, curve) for name, curve in named if curve is not None), key=lambda each: each[1].average)
    if curves:
        mean = sum(curve.average for _, curve in curves) / len(curves)
        parts.append(
            f"<h3>Precision over recall <span class='faint'>(mean average precision {100 * mean:.1f} %)</span></h3>"
        )
        parts.append(_picture(draw_curves(curves[:CURVES]), "Precision over recall", "chart"))
    return "".join(parts)


def _picture(image: Image.Image, name: str, kind: str = "") -> str:
    """A PNG within the page."""
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    coded = base64.b64encode(data.getvalue()).decode()
    marked = f' class="{kind}"' if kind else ""
    return f'<img{marked} alt="{_text(name)}" src="data:image/png;base64,{coded}">'


def _section(title: str, inside: str) -> str:
    return f"<h2>{_text(title)}</h2>\n<section>{inside}</section>"


def _text(value: object) -> str:
    return html.escape(str(value))
