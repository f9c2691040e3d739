"""The official ISIC layout, and folders that deviate from it."""

import pytest
from PIL import Image

from common.errors import InputError
from datasets import isic2018, open_dataset


@pytest.fixture
def folder(tmp_path):
    """Two images of each class; returns the folder and a function that rewrites its CSV."""
    images = tmp_path / isic2018.IMAGES
    images.mkdir()
    (tmp_path / isic2018.GROUND_TRUTH).mkdir()
    rows = []
    for number, name in enumerate(2 * isic2018.COLUMNS[1:]):
        image = f"ISIC_{number:07d}"
        Image.new("RGB", (6, 4)).save(images / f"{image}.jpg")
        rows.append([image, *(str(float(name == column)) for column in isic2018.COLUMNS[1:])])

    def write(columns=isic2018.COLUMNS, rows=rows, start=""):
        lines = [",".join(columns), *(",".join(row) for row in rows)]
        table = tmp_path / isic2018.GROUND_TRUTH / f"{isic2018.GROUND_TRUTH}.csv"
        table.write_text(start + "\n".join(lines) + "\n", encoding="utf-8")

    write()
    return tmp_path, write, rows


def test_base_and_rare(folder):
    data = open_dataset(folder[0])
    assert data.name == "isic2018"
    assert data.base.counts() == {"NV": 2, "MEL": 2, "BKL": 2, "BCC": 2}
    assert data.rare.counts() == {"DF": 2, "AKIEC": 2, "VASC": 2}
    assert data.rare.classes == ("DF", "AKIEC", "VASC")
    assert data.rare.ids[:2] == ("ISIC_0000005", "ISIC_0000012")
    assert data.rare.paths[0].name == "ISIC_0000005.jpg"


def test_order_of_rows_and_columns_does_not_matter(folder):
    root, write, rows = folder
    expected = open_dataset(root)
    order = [0, *range(7, 0, -1)]
    write([isic2018.COLUMNS[i] for i in order], [[row[i] for i in order] for row in rows[::-1]])
    found = open_dataset(root)
    assert found == expected and found.base.fingerprint() == expected.base.fingerprint()


def test_byte_order_mark(folder):
    root, write, _ = folder
    expected = open_dataset(root)
    write(start="\ufeff")
    assert open_dataset(root) == expected


def test_other_columns(folder):
    root, write, _ = folder
    write(columns=["image", "MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC"])
    with pytest.raises(InputError, match="has the columns .*AK,.*; expected image,MEL.*AKIEC"):
        open_dataset(root)


@pytest.mark.parametrize(
    "values",
    [["1.0", "1.0", *["0.0"] * 5], ["0.0"] * 7, ["x", *["0.0"] * 6], ["nan", *["0.0"] * 6]],
)
def test_a_row_that_is_not_one_hot(folder, values):
    root, write, rows = folder
    write(rows=[*rows[:3], ["ISIC_0000003", *values], *rows[4:]])
    with pytest.raises(InputError, match="line 5: .*one-hot"):
        open_dataset(root)


def test_a_duplicate_id(folder):
    root, write, rows = folder
    write(rows=[*rows, rows[0]])
    assert "repeat another row and count once" in open_dataset(root).notes[0]
    write(rows=[*rows, [rows[0][0], *rows[1][1:]]])
    with pytest.raises(InputError, match="duplicates: ISIC_0000000"):
        open_dataset(root)


@pytest.mark.parametrize("other", ["../ISIC_0000000", "./ISIC_0000000", "/ISIC_0000000", "a/b"])
def test_ids_are_names_not_paths(folder, other):
    root, write, rows = folder
    (root / "ISIC_0000000.jpg").touch()
    write(rows=[[other, *rows[0][1:]], *rows[1:]])
    with pytest.raises(InputError, match=f"1 of the 14 images .* missing .*: {other}.jpg"):
        open_dataset(root)


def test_images_without_a_row_are_passed_over(folder):
    root, write, rows = folder
    write(rows=rows[2:])
    data = open_dataset(root)
    assert len(data.base) == 6
    table = f"{isic2018.GROUND_TRUTH}.csv"
    names = tuple(f"{isic2018.IMAGES}/ISIC_000000{n}.jpg" for n in (0, 1))
    assert data.passed_over == {f"not in {table}": names}
    assert f" 2  not in {table}: {', '.join(names)}" in data.summary()


def test_extensions_in_capitals_and_other_formats(folder):
    """The id is the name without the extension."""
    root, _, _ = folder
    expected = open_dataset(root)
    images = root / isic2018.IMAGES
    (images / "ISIC_0000000.jpg").rename(images / "ISIC_0000000.JPG")
    (images / "ISIC_0000001.jpg").rename(images / "ISIC_0000001.png")
    (images / "ISIC_0000002.JPEG").write_bytes((images / "ISIC_0000002.jpg").read_bytes())
    data = open_dataset(root)
    assert data.base.ids == expected.base.ids
    assert {path.name for path in data.base.paths} > {"ISIC_0000000.JPG", "ISIC_0000001.png"}
    table = f"{isic2018.GROUND_TRUTH}.csv"
    assert data.passed_over == {f"not in {table}": (f"{isic2018.IMAGES}/ISIC_0000002.JPEG",)}


def test_what_else_is_in_the_folders(folder):
    root, _, _ = folder
    (root / isic2018.IMAGES / "more").mkdir()
    (root / isic2018.IMAGES / "LICENSE.txt").touch()
    (root / isic2018.IMAGES / "@eaDir").mkdir()
    (root / "ISIC2018_Task3_Test_Input").mkdir()
    (root / ".DS_Store").touch()
    images = isic2018.IMAGES
    assert open_dataset(root).passed_over == {
        "system, hidden and thumbnail files": (f"{images}/@eaDir/", ".DS_Store"),
        f"not in {isic2018.GROUND_TRUTH}.csv": (f"{images}/more/", f"{images}/LICENSE.txt"),
        "outside the layout of ISIC 2018": ("ISIC2018_Task3_Test_Input/",),
    }


def test_lesion_groupings(folder):
    root, _, _ = folder
    groupings = root / isic2018.GROUPINGS
    groupings.write_text("\ufeffimage,lesion_id\r\nISIC_0000000,x\r\nISIC_0000001,x\r\n")
    assert open_dataset(root).groups == {"ISIC_0000000": "x", "ISIC_0000001": "x"}
    groupings.write_text("image,lesion_id\nISIC_0000000,x\nISIC_0000000,y\n")
    with pytest.raises(InputError, match=r"different labels: ISIC_0000000 \('x' and 'y'\)"):
        open_dataset(root)
    groupings.write_text("image,lesion_id\nISIC_0000000,\n")  # all would be of one lesion
    with pytest.raises(InputError, match="line 2: .*lesion_id not empty"):
        open_dataset(root)


def test_all_missing_images_are_listed(folder):
    root, _, _ = folder
    for number in (1, 8):
        (root / isic2018.IMAGES / f"ISIC_{number:07d}.jpg").unlink()
    with pytest.raises(InputError, match="2 of the 14 images.*ISIC_0000001.jpg.*ISIC_0000008.jpg"):
        open_dataset(root)


def test_missing_parts(folder):
    root, _, _ = folder
    (root / isic2018.GROUND_TRUTH / f"{isic2018.GROUND_TRUTH}.csv").unlink()
    with pytest.raises(InputError, match="missing: .*GroundTruth.csv"):
        open_dataset(root)
    with pytest.raises(InputError, match="does not exist: .*nowhere"):
        open_dataset(root / "nowhere")
    (root / "empty").mkdir()
    with pytest.raises(InputError, match="no dataset recognised.*isic2018.*papsmear"):
        open_dataset(root / "empty")


def test_not_a_csv(folder):
    root, _, _ = folder
    table = root / isic2018.GROUND_TRUTH / f"{isic2018.GROUND_TRUTH}.csv"
    table.write_bytes(b"\x80\x81\x00binary")
    with pytest.raises(InputError, match="is not a CSV file"):
        open_dataset(root)
    table.write_bytes(b"")
    with pytest.raises(InputError, match="has the columns ; expected"):
        open_dataset(root)


def test_the_folder_of_the_ground_truth_and_unknown_lesions(folder):
    root, _, rows = folder
    truth = root / isic2018.GROUND_TRUTH
    Image.new("RGB", (6, 4)).save(truth / "lost.jpg")
    for place in (root, truth):
        text = f"image,lesion_id\n{rows[0][0]},A\n{rows[1][0]},A\u200b\nother,B\n"
        (place / isic2018.GROUPINGS).write_text(text, encoding="utf-8")
    data = open_dataset(root)
    assert [data.groups[row[0]] for row in rows[:2]] == ["A", "A"]
    assert f"1 ids in {isic2018.GROUPINGS} are no images: other" in data.notes
    names = [f"{isic2018.GROUND_TRUTH}/{name}" for name in (isic2018.GROUPINGS, "lost.jpg")]
    assert list(data.passed_over[isic2018.OUTSIDE]) == names
