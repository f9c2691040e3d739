"""The page of thumbnails."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from evaluation.predictions import error_rows
from plots.sheet import SIDE, sheet

CLASSES = ("DF", "<b>&scar")


class Page(HTMLParser):
    """Collects tags, their sources and the texts under each heading."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.texts += [data.strip()] * bool(data.strip())


def row(name, prediction, p, none="0.010000"):
    others = {f"p_{c}": "0.1" for c in CLASSES}
    return {"image": name, "prediction": prediction, **others, f"p_{prediction}": str(p),
            "none_of_these": none}  # fmt: skip


@pytest.fixture
def page(tmp_path):
    Image.new("RGB", (400, 200), "red").save(tmp_path / "red.png")
    (tmp_path / "gone.png").write_bytes(b"")
    evil = '<script>alert("x")</script>.png'
    rows = [row("low", "DF", 0.6), row("high", "DF", 0.9), row(evil, "<b>&scar", 0.8),
            row("other", "DF", 0.99, "0.7"), *error_rows({"broken": "not <an> image"})]  # fmt: skip
    paths = {"low": tmp_path / "red.png", evil: tmp_path / "red.png", "high": tmp_path / "gone.png"}
    about = {"classifier": "logistic regression", "encoder": "<conv4>"}
    return sheet(rows, paths, CLASSES, 0.05, "new & old", about)


def test_by_class_and_confidence(page):
    found = Page(page)
    heads = [text for text in found.texts if re.search(r": \d+$", text)]
    assert heads == ["DF: 2", "<b>&scar: 1", "none of these: 1", "unreadable: 1"]
    assert found.texts.index("high") < found.texts.index("low") < found.texts.index("other")
    assert "DF 99%; none of these 0.70" in found.texts and "not <an> image" in found.texts


def test_the_head_says_what_made_it(page):
    head = Page(page.partition("<h2>")[0]).texts
    told = dict(zip(head[-10::2], head[-9::2]))
    assert list(told) == ["classifier", "encoder", "images", "percentage", "none of these"]
    assert (told["classifier"], told["encoder"], told["images"]) == (
        "logistic regression", "<conv4>", "5",
    )  # fmt: skip
    assert "share of the base images" in told["none of these"] and "0.05" in told["none of these"]
    assert "For research, not for diagnosis." in head


def test_without_scores_nothing_is_said_of_none_of_these():
    text = sheet([row("a", "DF", 0.9, "")], {}, CLASSES, 0.05, "new", {})
    assert "none of these" not in text


def test_escaped_and_self_contained(page):
    found = Page(page)
    assert "script" not in found.tags and "b" not in found.tags
    assert '<script>alert("x")</script>.png' in found.texts and "new & old" in found.texts
    assert len(found.sources) == 2  # one image is damaged, one has no path
    assert all(source.startswith("data:image/jpeg;base64,") for source in found.sources)
    thumbnail = Image.open(io.BytesIO(base64.b64decode(found.sources[0].partition(",")[2])))
    assert thumbnail.size == (SIDE, SIDE // 2) and thumbnail.getpixel((80, 40))[0] > 240
