"""CSV files as spreadsheets write them."""

import unicodedata

import pytest
from PIL import Image

from common.errors import InputError
from datasets import open_dataset
from datasets.groups import with_groups
from datasets.open import read_support
from datasets.tables import table_rows

NAMES = ("nævus", "scar", "vessel")
CLASSES = ["nævus"], ["scar", "vessel"]


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{number}.jpg")
    return tmp_path


def table(root, header="path,label", delimiter=",", slash="/", encoding="utf-8", end="\n"):
    rows = [f"{name}/{n}.jpg,{name}" for name in NAMES for n in range(2)]
    lines = [header, *(row.replace(",", delimiter).replace("/", slash) for row in rows)]
    (root / "t.csv").write_bytes((end.join(lines) + end).encode(encoding))
    return root / "t.csv"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("slash", ["/", "\\"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("header", ["path,label", "Path,LABEL"])
def test_a_spreadsheet_gives_the_same_images(root, delimiter, slash, encoding, header):
    expected = open_dataset(root, *CLASSES)
    header = header.replace(",", delimiter)
    data = open_dataset(table(root, header, delimiter, slash, encoding), *CLASSES)
    assert data.base.ids == expected.base.ids and data.rare.ids == expected.rare.ids
    assert data.base.counts() == {"nævus": 2}
    latin = ("t.csv is not UTF-8; read as Windows-1252",) if encoding == "cp1252" else ()
    assert data.notes == latin
    assert all(f"note: {note}" in data.summary() for note in latin)


@pytest.mark.parametrize(
    "content, says",
    [
        ("path,label\na,b\n".encode("utf-16-le"), "has the columns .* save it as UTF-8"),
        (b"path,label\n\x81,b\n", "not a CSV file: neither UTF-8 nor Windows-1252"),
        (b"path,label\n\xe9\0,b\n", "not a CSV file: neither UTF-8 nor Windows-1252"),
        (b"path|label\na|b\n", "separated by commas or semicolons or tabs"),
        (b"path;label,x\n", "columns path;label,x; expected path,label"),
        (b"path,label\n\xe2\x80\x8b,b\n", "line 2: .* not empty"),  # a zero-width space
        (b"path,label\na.jpg,\xe2\x80\x8b\n", "line 2: .* not empty"),
    ],
)
def test_what_is_not_certain_is_told(root, content, says):
    (root / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=says):
        open_dataset(root / "t.csv", *CLASSES)


def test_a_file_with_a_backslash_in_its_name(root):
    Image.new("RGB", (9, 9)).save(root / "scar\\0.jpg")
    data = open_dataset(table(root, slash="\\"), *CLASSES)
    assert data.rare.ids == ("scar/1.jpg", "scar\\0.jpg", "vessel/0.jpg", "vessel/1.jpg")


@pytest.mark.parametrize("on_disk, written", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_in_the_other_normal_form(root, on_disk, written):
    (root / "nævus").rename(root / "x")
    (root / "x").rename(root / unicodedata.normalize(on_disk, "névus"))
    path = table(root)
    text = path.read_text().replace("nævus", unicodedata.normalize(written, "névus"))
    path.write_text(text)
    assert len(open_dataset(path, ["névus"], ["scar", "vessel"]).base) == 2


def test_other_classes_of_a_table_are_counted(root):
    data = open_dataset(table(root), ["scar"], ["vessel", "nævus"])
    assert data.others.counts() == {}
    path = table(root)
    path.write_text(path.read_text() + "x.jpg,other\n")
    Image.new("RGB", (8, 8)).save(root / "x.jpg")
    assert open_dataset(path, *CLASSES).others.counts() == {"other": 1}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoted", ["header", "all", "all and index"])
def test_quoted_as_r_and_libreoffice_write(root, delimiter, quoted):
    """R's write.csv2 quotes the header and strings, and has an unnamed first column of numbers."""
    expected = open_dataset(root, *CLASSES)
    path = table(root, "Path,Label".replace(",", delimiter), delimiter)
    rows = [line.split(delimiter) for line in path.read_text().splitlines()]
    if quoted == "all and index":
        rows = [["" if not n else str(n), *row] for n, row in enumerate(rows)]
    for row in rows[:1] if quoted == "header" else rows:
        row[:] = [f'"{value}"' for value in row]
    path.write_text("\n".join(map(delimiter.join, rows)) + "\n")
    data = open_dataset(path, *CLASSES)
    assert data.base.ids == expected.base.ids and data.rare.ids == expected.rare.ids
    assert data.notes == ()


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;", "sep=;;"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_separator_line_and_empty_rows_of_excel(root, line, encoding, end):
    path = table(root, f"{line}{end}path;label", ";", encoding=encoding, end=end)
    empty = f";{end} ; {end};;;{end}".encode(encoding.replace("16", "16-le").removesuffix("-sig"))
    path.write_bytes(path.read_bytes() + empty)
    rows = table_rows(path, ("path", "label"), [])
    assert [number for number, _ in rows] == [3, 4, 5, 6, 7, 8]  # as an editor counts
    assert len(open_dataset(path, *CLASSES).rare) == 4


def test_an_exact_repetition_of_a_row_counts_once(root):
    path = table(root)
    path.write_text(path.read_text() + "scar/0.jpg,scar\nscar/0.jpg, scar \n")
    data = open_dataset(path, *CLASSES)
    assert data.rare.counts() == {"scar": 2, "vessel": 2}
    assert "note: 2 rows of t.csv repeat another row and count once" in data.summary()
    rows = "scar/0.jpg;scar\n" * 2 + "vessel/1.jpg;vessel"
    (root / "s.csv").write_text(f'"image";"label"\n{rows}')
    assert read_support(data, root / "s.csv") == {
        "scar": ["scar/0.jpg"], "vessel": ["vessel/1.jpg"]
    }  # fmt: skip
    numbered = '"";"path";"label"\n1;scar/0.jpg;scar\n2;scar/1.jpg;scar\n3;scar/0.jpg;scar\n'
    (root / "r.csv").write_text(numbered)
    assert [line for line, _ in table_rows(root / "r.csv", ("path", "label"), [])] == [2, 3]
    (root / "g.csv").write_text('sep=;\n"image";"group"\n' + "scar/0.jpg;P1\n" * 2 + ";\n")
    grouped = with_groups(data, root / "g.csv")
    assert grouped.groups == {"scar/0.jpg": "P1"}
    assert grouped.notes[-1] == "1 rows of g.csv repeat another row and count once"


def test_a_path_with_two_labels_says_so(root):
    path = table(root)
    path.write_text(path.read_text() + "scar/0.jpg,vessel\n")
    with pytest.raises(InputError, match=r"different labels: .*scar/0.jpg \('scar' and 'vessel'\)"):
        open_dataset(path, *CLASSES)
    path.write_text("path,label,age\nscar/0.jpg,scar,4\nscar/0.jpg,scar,5\n")
    with pytest.raises(InputError, match="t.csv has duplicates: .*scar/0.jpg"):
        open_dataset(path, *CLASSES)
