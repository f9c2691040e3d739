"""User-provided images: class folders, CSV files and the choice of classes."""

import json
import os
import shutil
import unicodedata

import pytest
from PIL import Image

from common.errors import InputError
from datasets import open_dataset, own

COUNTS = {"common": 5, "healthy": 4, "rare one": 3, "rare two": 2}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "clinic"
    for name, count in COUNTS.items():
        for number in range(count):
            parent = root / name / ("ward" if number else ".")
            parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(parent / f"{number}.png")
    (root / ".cache").mkdir()
    (root / "notes").mkdir()
    (root / "notes" / "read me.txt").write_text("no image")
    return root


def csv_of(folder, columns="path,label", end="\r\n", bom="\ufeff"):
    lines = [columns]
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(folder)
        values = {"path": str(name), "label": name.parts[0], "age": "40"}
        lines.append(",".join(values[column] for column in columns.split(",")))
    table = folder / "images.csv"
    table.write_bytes((bom + end.join(lines) + end).encode())
    return table


CHOICE = ["healthy", "common"], ["rare two", "rare one"]


def test_class_folders(folder):
    data = open_dataset(folder, *CHOICE)
    assert data.name == "clinic"
    assert data.base.counts() == {"healthy": 4, "common": 5}  # in the order given
    assert data.rare.counts() == {"rare two": 2, "rare one": 3}
    assert "rare one/ward/1.png" in data.rare.ids


@pytest.mark.parametrize("columns", ["path,label", "age,label,path"])
def test_csv_equals_class_folders(folder, columns):
    from_csv = open_dataset(csv_of(folder, columns), *CHOICE)
    assert from_csv.name == "images"
    unused = ("further columns of images.csv are not used: age",) * ("age" in columns)
    assert from_csv.notes == unused
    assert from_csv.base.ids == open_dataset(folder, *CHOICE).base.ids
    assert all(path.is_file() for path in from_csv.base.paths)


def test_a_column_support_is_noted(folder):
    table = folder / "t.csv"
    table.write_text("path,label,Support,group\nhealthy/0.png,common,x,A\n")
    expected = "further columns of t.csv are not used: Support (only by --support)"
    assert own.find(table).notes == [expected]


def test_spaces_after_commas(folder):
    table = folder / "t.csv"
    table.write_text("path, label\nhealthy/0.png, common\nhealthy/ward/1.png, rare one\n")
    assert own.find(table).rows[1][:3] == (
        "healthy/ward/1.png",
        folder / "healthy/ward/1.png",
        "rare one",
    )


def test_absolute_paths(folder, tmp_path):
    table = tmp_path / "t.csv"
    lines = [f"{path},{path.relative_to(folder).parts[0]}" for path in folder.rglob("*.png")]
    table.write_text("path,label\n" + "\n".join(lines))
    assert len(open_dataset(table, *CHOICE).rare) == 5


@pytest.mark.parametrize(
    ("base", "rare", "says"),
    [
        (None, None, "classes 'common', 'healthy', 'rare one', 'rare two'; .*--rare-classes"),
        (["common"], None, "--base-classes and .*--rare-classes"),
        (["common"], ["unheard of"], "classes 'common', 'healthy'"),
        (["common", "healthy"], ["rare one", "common"], "duplicates .*: 'common'"),
        (["common", "healthy"], ["rare one"], "--rare-classes .*at least 2 classes, got 1"),
    ],
)
def test_which_classes(folder, base, rare, says):
    with pytest.raises(InputError, match=says):
        open_dataset(folder, base, rare)


BLANKS = ["angioma ", "angioma\u200b", "\ufeffangioma", "angioma\xa0"]


@pytest.mark.parametrize("name", [*BLANKS, unicodedata.normalize("NFD", "nævusé")])
@pytest.mark.parametrize("kind", ["folders", "csv", "typed"])
def test_names_are_compared_as_people_read_them(folder, name, kind):
    label = unicodedata.normalize("NFC", name).strip("\u200b\ufeff\xa0 ")
    written = label if kind == "typed" else name
    (folder / "common").rename(folder / written)
    root = csv_of(folder) if kind == "csv" else folder
    base = [name if kind == "typed" else label]
    data = open_dataset(root, base, ["rare two", "rare one"])
    assert data.base.counts() == {label: 5} and data.others.counts() == {"healthy": 4}
    assert data.base.ids[0] == f"{written}/0.png"  # as on the disk


def test_folders_of_one_name_in_two_spellings_are_one_class(folder):
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "nævusé")
        (folder / name).mkdir()
        Image.new("RGB", (8, 8)).save(folder / name / "0.png")
    data = open_dataset(folder, ["nævusé"], ["rare two", "rare one"])
    assert data.base.counts() == {"nævusé": 2} and len(set(data.base.ids)) == 2
    (note,) = data.notes
    assert "'nævusé': one class from the folders 'n\\xe6vuse\\u0301', 'n\\xe6vus\\xe9'" in note


def test_a_blank_folder_name(folder):
    (folder / "common").rename(folder / "\u200b")
    with pytest.raises(InputError, match=r"blank name: '\\u200b'"):
        open_dataset(folder, *CHOICE)


@pytest.mark.parametrize("kind", ["folders", "csv"])
def test_a_near_miss_of_a_class_is_refused(folder, kind):
    """The images would be left out."""
    other = "Rare  One"
    (folder / other).mkdir()
    Image.new("RGB", (8, 8)).save(folder / other / "9.png")
    root = csv_of(folder) if kind == "csv" else folder
    says = r"capitals or spaces alone: 'Rare  One' \(1 images; beside 'rare one'\)"
    with pytest.raises(InputError, match=says):
        open_dataset(root, *CHOICE)
    data = open_dataset(root, ["healthy", "common"], ["rare one", other])
    assert data.rare.counts() == {"rare one": 3, other: 1}  # listed: two classes
    assert open_dataset(root, ["healthy"], ["common", "rare two"]).others.counts()["rare one"] == 3


def test_an_absent_class_and_the_nearest_one(folder):
    with pytest.raises(InputError) as error:
        open_dataset(folder, ["healthy", "comon"], ["rare one", "xyz"])
    assert "has no class 'comon' (nearest: 'common'), 'xyz'; " in str(error.value)
    with pytest.raises(InputError, match=r"no class 'ward' \(a folder inside 'common'\), "):
        open_dataset(folder, ["ward"], ["rare one", "xyz"])


def test_an_empty_class_is_called_empty(folder):
    (folder / "new").mkdir()
    (folder / "new" / "note.txt").touch()
    with pytest.raises(InputError, match="clinic/new holds no image, only new/note.txt"):
        open_dataset(folder, ["common"], ["rare one", "new"])
    (folder / "new" / "note.txt").unlink()
    with pytest.raises(InputError, match="the class folder .*clinic/new is empty"):
        open_dataset(folder, ["common"], ["rare one", "new"])
    assert open_dataset(folder, *CHOICE).passed_over["class folders without images"] == (
        "new/", "notes/"
    )  # fmt: skip


def test_segmentations_of_an_incomplete_herlev_folder(folder):
    for name in ("carcinoma_in_situ/1.BMP", "carcinoma_in_situ/1-D.BMP", "rare one/0-d.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    data = open_dataset(folder, ["carcinoma_in_situ"], ["rare one", "rare two"])
    assert data.base.counts() == {"carcinoma_in_situ": 1}
    assert data.passed_over["segmentations"] == ("carcinoma_in_situ/1-D.BMP", "rare one/0-d.png")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,label\na.png,x\n", "has the columns image,label; expected path,label"),
        ("path,label\n", "lists no images"),
        ("path,label\na.png,\n", "line 2: expected 2 values"),
        ("path,label\na.png\n", "line 2: expected 2 values"),
        ("path,label\nhealthy/0.png,x\n./healthy/0.png,y\n", r"labels: .*/0.png \('x' and 'y'\)"),
        ("path,label\nhealthy/0.png,x\ngone.png,y\n", "1 of the 2 images in t.csv are missing"),
        ("", "has the columns ; expected path,label"),
        ("path,label\n\x81", "not a CSV file: neither UTF-8 nor Windows-1252"),
        ("path,label,path\nhealthy/0.png,x,y\n", "path,label, each once"),
        ("path,label\na, b.png,x\n", "line 2: expected 2 values"),  # an unquoted comma
        ("path,label\nhealthy/0.png,x\0\n", "NUL"),
        ('path,label\nhealthy/0.png,"x\n', "not a CSV file: unexpected end of data"),
        ("path,label\n" + "x" * 200_000 + ",x\n", "not a CSV file: field larger than"),
        ("path,label\n" + "x" * 5000 + ",x\n", "1 of the 1 images in t.csv are missing"),
        ("path|label\nhealthy/0.png|x\n", r"columns path\|label; .* commas or semicolons or tabs"),
        ("path,label\nhealthy/0.png,x\nward/../healthy/0.png,x\n", "duplicates"),
    ],
)
def test_bad_csv(folder, text, says):
    (folder / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=says):
        open_dataset(folder / "t.csv", *CHOICE)


def test_another_split_of_a_known_dataset(data):
    found = open_dataset(data, ["NV", "DF"], ["MEL", "BCC"])
    assert found.base.classes == ("NV", "DF") and found.rare.classes == ("MEL", "BCC")
    assert found.base.fingerprint() != open_dataset(data).base.fingerprint()


@pytest.mark.parametrize("known", [("carcinoma_in_situ",), ("NORMAL", "macular_hole")])
def test_class_names_of_a_known_dataset(folder, known):
    """They are allowed in own images if the classes are given."""
    for name in known:
        (folder / name).mkdir()
        Image.new("RGB", (8, 8)).save(folder / name / "0.png")
    found = open_dataset(folder, ["common", known[0]], ["rare one", "rare two"])
    assert found.base.counts() == {"common": 5, known[0]: 1}
    with pytest.raises(InputError, match="missing class folders|no images of"):
        open_dataset(folder)


def test_a_folder_without_class_folders(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match="no dataset recognised"):
        open_dataset(tmp_path)


def test_a_folder_with_the_name_of_another_class(folder):
    inside = folder / "common" / "Rare One"
    inside.mkdir()
    Image.new("RGB", (8, 8)).save(inside / "x.png")
    data = open_dataset(folder, *CHOICE)
    assert data.base.counts()["common"] == 6
    assert data.notes == (
        "1 images in folders with the name of another class: common/Rare One/ (as 'common')",
    )


@pytest.mark.parametrize("columns", ["group,Group", "group,group"])
def test_two_columns_of_groups(folder, columns):
    table = folder / "t.csv"
    table.write_text(f"path,label,{columns}\ncommon/0.png,common,a,b\n")
    with pytest.raises(InputError, match="header of .* has duplicates: group"):
        open_dataset(table, *CHOICE)


def test_a_class_called_as_images_without_label(folder):
    (folder / "rare one").rename(folder / "?")
    assert "'?' 3" in open_dataset(folder, CHOICE[0], ["rare two", "?"]).summary()


def test_a_data_folder_that_is_not_utf8(folder, tmp_path):
    other = folder.rename(tmp_path / os.fsdecode(b"clinic\xff"))
    data = open_dataset(other, *CHOICE)
    json.dumps(data.rare.fingerprint(), ensure_ascii=False).encode()
    assert data.name == r"clinic\udcff"


def flat(folder, inside="."):
    """The images in `folder / inside`, with no class folders, and the table of `csv_of`."""
    lines = ["path;Label"]
    for path in sorted(folder.rglob("*.png")):
        name = f"{inside}/{path.relative_to(folder)}".replace(" ", "").replace("/", "-")
        name = name.removeprefix(".-").replace(f"{inside}-", f"{inside}/", inside != ".")
        (folder / name).parent.mkdir(exist_ok=True)
        lines.append(f"{name};{path.relative_to(folder).parts[0]}")
        path.rename(folder / name)
    for name in COUNTS:
        shutil.rmtree(folder / name)
    (folder / "labels.CSV").write_text("\n".join(lines), encoding="utf-8")
    return lines[1:]


@pytest.mark.parametrize("inside", [".", "images"])
def test_folder_with_one_table_is_that_table(folder, inside):
    lines = flat(folder, inside)
    Image.new("RGB", (8, 8)).save(folder / "new.png")
    (folder / "._labels.csv").write_bytes(b"\0")
    data = open_dataset(folder, *CHOICE)
    assert data.name == "clinic"
    assert data.base.counts() == {"healthy": 4, "common": 5}
    assert data.rare.counts() == {"rare two": 2, "rare one": 3}
    assert {*data.base.ids, *data.rare.ids} == {line.partition(";")[0] for line in lines}
    assert data.passed_over["images that labels.CSV does not list"] == ("new.png",)
    assert data.passed_over["not images"] == ("notes/read me.txt",)  # not the table
    with pytest.raises(InputError, match="--group-column ward: .*labels.CSV has the columns"):
        open_dataset(folder, *CHOICE, group_column="ward")


def test_images_listed_through_a_link_are_not_passed_over(folder, tmp_path):
    lines = flat(folder, "images")
    table = folder / "labels.CSV"
    rows = [f"{folder.resolve()}/{line}" for line in lines]
    table.write_text("\n".join(["path;label", *rows]), encoding="utf-8")
    (tmp_path / "link").symlink_to(folder)
    data = open_dataset(tmp_path / "link", *CHOICE)
    assert len(data.base) + len(data.rare) == len(lines)
    assert not [reason for reason in data.passed_over if "labels.CSV" in reason]


def test_folder_with_several_tables_is_refused(folder):
    flat(folder)
    (folder / "support.tsv").write_text("image\tlabel")
    with pytest.raises(InputError, match="2 tables and no 3 class folders; .*labels.CSV, support."):
        open_dataset(folder, *CHOICE)


def test_table_beside_class_folders_is_told(folder):
    csv_of(folder)
    (folder / "clinical.csv").write_text("patient,age\n1,40\n")
    data = open_dataset(folder, *CHOICE)
    assert data.passed_over[own.BESIDE] == ("images.csv",)
    assert data.passed_over["outside the class folders"] == ("clinical.csv",)
    assert "1  tables beside class folders (pass one as DATA" in data.summary()
    with pytest.raises(InputError, match="no class 'nv'.*; to read .*/images.csv instead of the"):
        open_dataset(folder, ["nv", "healthy"], CHOICE[1])


def test_only_files_are_tables(folder):
    """Reading a named pipe would block; a folder is a class, whatever its name."""
    for name in ("healthy", "common"):
        shutil.rmtree(folder / name)
    os.mkfifo(folder / "pipe.csv")
    (folder / "rare one").rename(folder / "rare.csv")
    listing = own.find(folder)
    assert {row.label for row in listing.rows} == {"rare.csv", "rare two"}
    assert "pipe.csv" in listing.passed_over[own.OUTSIDE]
