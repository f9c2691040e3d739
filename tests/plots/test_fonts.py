"""Fonts for names in any script."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, get_data_path

from plots import draw, fonts, style
from plots.fonts import characters, choose_fonts


def make_font(path: Path, name: str, letters: str) -> None:
    """Write a font in which each letter is a square."""
    pen = TTGlyphPen(None)
    for step, corner in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if step else pen.moveTo)(corner)
    pen.closePath()
    square = pen.glyph()
    names = {letter: f"g{number}" for number, letter in enumerate(letters)}
    order = [".notdef", *names.values()]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap({ord(letter): glyph for letter, glyph in names.items()})
    builder.setupGlyf(dict.fromkeys(order, square))
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def only_matplotlibs(monkeypatch):
    """Leave out the fonts of this machine."""
    fonts = [f for f in font_manager.fontManager.ttflist if f.fname.startswith(get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Two fonts: of 病 and 変, and of 病 alone."""
    only_matplotlibs(monkeypatch)
    for name, letters in (("Half", "病"), ("Whole", "病変")):
        make_font(tmp_path / f"{name}.ttf", name, letters)
        font_manager.fontManager.addfont(tmp_path / f"{name}.ttf")


@pytest.fixture(autouse=True)
def closing():
    yield
    style.pyplot().close("all")


def figure_of(*names: str):
    figure, (ax,) = draw.grid(1, 3, 3)
    ax.set_xticks(range(len(names)), names)
    return figure, ax


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_font_that_has_them_is_chosen(installed):
    figure, ax = figure_of("nevus", "病変 α")
    assert choose_fonts(figure) == set()
    families = [label.get_fontfamily() for label in ax.get_xticklabels()]
    assert families == [["DejaVu Sans", "Whole"]] * 2
    assert choose_fonts(figure_of("字 病")[0]) == {"字"}


@pytest.mark.filterwarnings("ignore:Glyph")
def test_without_such_a_font(monkeypatch):
    only_matplotlibs(monkeypatch)
    figure, ax = figure_of("nevus", "\U00012000")
    before = ax.get_xticklabels()[0].get_fontfamily()
    assert choose_fonts(figure) == {"\U00012000"}
    assert ax.get_xticklabels()[0].get_fontfamily() == before


def test_latin_and_greek_need_no_other_font(monkeypatch):
    read = []
    monkeypatch.setattr(fonts, "characters", lambda font: read.append(font) or characters(font))
    assert choose_fonts(figure_of("nævus_β", "Ðø ≥ 3 µm")[0]) == set()
    assert len(read) == 1
