"""Choose installed fonts that have the characters of a figure's texts, such as class names."""

DEFAULT = "DejaVu Sans"  # comes with matplotlib
NO_TEXT_FONTS = ("Last Resort", "cm", "STIX")  # boxes instead of letters; mathematics


def choose_fonts(figure) -> set[str]:
    """Give each text in a figure installed fonts that have its characters. Returns those that no
    font has."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    default = font_manager.findfont(DEFAULT)
    figure.draw_without_rendering()  # sets the labels of ticks
    texts = figure.findobj(Text)
    needed = {c for text in texts for c in text.get_text() if not c.isspace()}
    missing, families = needed - characters(default), [DEFAULT]
    fonts = font_manager.fontManager.ttflist if missing else []
    found = {font.name: missing & characters(font.fname) for font in sorted(fonts, key=plainness)
             if not font.name.startswith(NO_TEXT_FONTS)}  # fmt: skip
    while missing and (name := max(found, key=lambda name: len(found[name] & missing))):
        if not found[name] & missing:
            break
        families.append(name)
        missing -= found[name]
    for text in texts if len(families) > 1 else ():
        text.set_fontfamily(families)
    return missing


def plainness(font) -> tuple:
    """Sort bold and slanted fonts first, so that plain ones, which are drawn, count last."""
    return font.style == "normal", font.weight in (400, "normal", "regular")


def characters(font: str) -> set[str]:
    """Return the characters of a font file; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return set(map(chr, FT2Font(font).get_charmap()))
    except Exception:  # FreeType's errors for odd fonts are of every kind
        return set()
