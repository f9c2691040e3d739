"""A contact sheet: one self-contained HTML page of predictions with thumbnails."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from common.errors import InputError
from datasets.images import read_image
from datasets.listing import ArrayImage
from evaluation.predictions import (
    ERROR,
    NONE,
    NONE_OF_THESE,
    Row,
    confidence,
    page_mark,
    verdict,
)

SIDE = 160  # largest width and height of a thumbnail, in pixels
CAUTION = "For research, not for diagnosis."
EXPLAINED = (
    "share of the base images (common diseases) that look at least as rare as the image, 0 to 1: "
    "the higher, the less it looks like any of the classes. Above {level:g} it is listed as none "
    "of these. A hint only: see docs/evaluation.md"
)
STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
h2 { margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; }
.row { display: flex; flex-wrap: wrap; gap: 12px; }
figure { margin: 0; width: 160px; }
img, .gone { width: 160px; height: 160px; object-fit: contain; background: #f2f2f2; }
.gone { display: flex; align-items: center; justify-content: center; color: #777; }
figcaption { overflow-wrap: anywhere; font-size: 12px; }
th { text-align: left; font-weight: normal; color: #777; vertical-align: top; }
td, th { padding: 2px 12px 2px 0; vertical-align: top; overflow-wrap: anywhere; }
"""


def sheet(
    rows: Sequence[Row],
    paths: Mapping[str, Path | ArrayImage],
    classes: Sequence[str],
    level: float,
    title: str,
    about: Mapping[str, str],
    page: str = "",
) -> str:
    """Return an HTML page of the images by verdict, the most confident first, with their ids.

    `about`: what else the head of the page tells of them, by name. `page`: see `page_mark`.

    Thumbnails are embedded, so that the page is one file; it runs no script and loads nothing. An
    image without a path, or one that cannot be read any more, has none. At the end it lists the
    images that were not read, and why.
    """
    told = {**about, "images": f"{len(rows)}", "percentage": "probability of the class shown"}
    if any(row.get(NONE) for row in rows):
        told[NONE_OF_THESE] = EXPLAINED.format(level=level)
    cells = "\n".join(
        f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in told.items()
    )
    parts = [
        f"<h1>{escape(title)}</h1>\n<p><strong>{CAUTION}</strong></p>\n<table>\n{cells}\n</table>"
    ]
    for name in (*classes, NONE_OF_THESE):
        found = [row for row in rows if "prediction" in row and verdict(row, level) == name]
        found.sort(key=confidence, reverse=True)
        if found or name != NONE_OF_THESE:
            figures = "\n".join(_figure(row, paths.get(row["image"]), name) for row in found)
            head = f"{escape(name)}: {len(found)}"
            parts.append(f'<h2>{head}</h2>\n<div class="row">\n{figures}\n</div>')
    if unread := [row for row in rows if "prediction" not in row]:
        cells = "\n".join(
            f"<tr><td>{escape(row['image'])}</td><td>{escape(row.get(ERROR, ''))}</td></tr>"
            for row in unread
        )
        parts.append(f"<h2>unreadable: {len(unread)}</h2>\n<table>\n{cells}\n</table>")
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n{page_mark(page)}\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _figure(row: Row, path: Path | ArrayImage | None, heading: str) -> str:
    """Return an image with its id, probability and, if known, how much it looks like no class."""
    caption = f"{confidence(row):.0%}"
    if row["prediction"] != heading:
        caption = f"{row['prediction']} {caption}"
    if row.get(NONE):
        caption += f"; {NONE_OF_THESE} {float(row[NONE]):.2f}"
    thumbnail = _thumbnail(path) if path else None
    shown = '<div class="gone">no longer there</div>'
    if thumbnail:
        shown = f'<img alt="" src="data:image/jpeg;base64,{thumbnail}">'
    text = f"{escape(row['image'])}<br>{escape(caption)}"
    return f"<figure>{shown}<figcaption>{text}</figcaption></figure>"


def _thumbnail(path: Path | ArrayImage) -> str | None:
    """Return a small JPEG in base64; None if the image cannot be read."""
    try:
        image = read_image(path)
    except InputError:
        return None
    image.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return base64.b64encode(content.getvalue()).decode()
