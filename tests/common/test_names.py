import unicodedata

import pytest

from common.names import clean, counted, folded, nearest, printable, quoted

NFD = unicodedata.normalize("NFD", "nævusé")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("scar", "scar"),
        (" scar\t", "scar"),
        ("scar\u200b", "scar"),  # zero-width space
        ("\ufeffscar\xa0", "scar"),  # byte-order mark, no-break space
        ("scar tissue", "scar tissue"),
        (NFD, "nævusé"),
        ("\u200b \ufeff", ""),
        ("", ""),
        ("病变", "病变"),
        ("l\udce4sion", "l\udce4sion"),  # not UTF-8
    ],
)
def test_clean(name, expected):
    assert clean(name) == expected
    assert clean(clean(name)) == clean(name)


def test_near_misses():
    assert folded("Scar  Tissue") == folded("scar\u200b tissue") == folded("scar tissue")
    assert folded("scar-tissue") != folded("scar tissue")
    assert nearest("Naevus", ["scar", "nevus", "angioma"]) == "nevus"
    assert nearest("ANGIOMA", ["scar", "angioma", "angiomas"]) == "angioma"
    assert nearest("xyz", ["scar", "nevus"]) is None


def test_printable():
    assert printable("nævus 1.jpg") == "nævus 1.jpg"
    assert printable("ä\nb\udce4") == "ä\\nb\\udce4"


def test_class_names_stay_apart_from_numbers():
    assert counted({"NV": 30, "light_dysplastic": 60}) == "NV 30, light_dysplastic 60"
    assert counted({"3": 30, "NV": 60}) == "'3' 30, 'NV' 60"
    assert counted({"scar, old": 1, "3": 2}, limit=1) == "'scar, old' 1 and 1 more"
    assert quoted("a\nb") == r"'a\nb'" and counted({}) == ""
