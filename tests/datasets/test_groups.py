"""Groups of images, from a column, a file, or ISIC's groupings."""

import pytest
from PIL import Image

from common.errors import InputError
from datasets import isic2018, oct, open_dataset, synthetic
from datasets.episode import Task, draw_task
from datasets.groups import with_folders, with_groups
from datasets.open import draw, note_on_shared, open_data
from evaluation.run import group_word

CHOICE = ["common", "odd"], ["scar", "burn"]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "clinic"
    for name in ("common", "odd", "scar", "burn"):
        (root / name).mkdir(parents=True)
        for image in range(6):
            Image.new("RGB", (4, 4), "red").save(root / name / f"{image}.png")
    return root


def table(path, *rows):
    path.write_text("\n".join(rows) + "\n")
    return path


def images_of(folder):
    return sorted(f"{path.parent.name}/{path.name}" for path in folder.glob("*/*.png"))


@pytest.mark.parametrize(("column", "given"), [("group", None), ("patient", "patient")])
def test_a_column_of_the_csv_file(folder, column, given):
    rows = [f"{i},{i.split('/')[0]},P{n // 2}" for n, i in enumerate(images_of(folder))]
    rows[0] = rows[0].replace("P0", "")  # not known
    path = table(folder / "t.csv", f"path,label,{column}", *rows)
    data = open_dataset(path, *CHOICE, given)
    expected = {i: f"P{n // 2}" for n, i in enumerate(images_of(folder)) if n}
    assert data.groups == expected
    note = "12 groups (patients, lesions) of 23 images"
    assert note in data.summary() and note in data.to_dict()["notes"]
    if given:
        assert open_dataset(path, *CHOICE).groups == {}
        with pytest.raises(InputError, match="--group-column x: .*path,label,patient"):
            open_dataset(path, *CHOICE, "x")


def test_a_group_column_needs_a_csv_file(folder, data):
    for root, choice in ((folder, CHOICE), (data, ())):
        with pytest.raises(InputError, match="--group-column patient: .* not a CSV.*--groups"):
            open_dataset(root, *choice, group_column="patient")


def test_a_file_of_groups(folder, tmp_path):
    data = open_dataset(folder, *CHOICE)
    rows = [f"{i},{n // 3}" for n, i in enumerate(images_of(folder))]
    path = table(tmp_path / "g.csv", "image,age,group", *[r.replace(",", ",40,") for r in rows])
    found = with_groups(data, path)
    assert found.groups == {i: str(n // 3) for n, i in enumerate(images_of(folder))}
    assert found.notes == () and "8 groups (patients, lesions) of 24 images" in found.summary()
    path = table(tmp_path / "p.csv", "image,patient", *rows[:3], "x.png,9", "y.png,9")
    found = with_groups(data, path, "patient")
    assert len(found.groups) == 5
    assert found.notes == ("2 ids in p.csv are no images: x.png, y.png",)


def test_ids_with_backslashes_or_in_another_unicode_form(folder, tmp_path):
    (folder / "scar" / "0.png").rename(folder / "scar" / "n\u00e6vuse\u0301.png")
    data = open_dataset(folder, *CHOICE)
    rows = ["scar\\n\u00e6vus\u00e9.png,A", "scar\\1.png,A", "burn/0.png,B"]
    found = with_groups(data, table(tmp_path / "g.csv", "image,group", *rows))
    assert set(found.groups) <= set(data.rare.ids) and len(found.groups) == 3 and not found.notes
    path = table(tmp_path / "g.csv", "image,group", *rows, "scar/1.png,B")
    with pytest.raises(InputError, match=r"different labels: scar/1.png \('A' and 'B'\)"):
        with_groups(data, path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["image,patient", "scar/0.png,1"], "no column group; .* --group-column"),
        (["id,group", "scar/0.png,1"], "columns id,group; expected image,group"),
        (["image,group", "scar/0.png,1", "scar/0.png,2"], "different labels: scar/0.png"),
        (["image,group", "scar/0.png,1", "scar\\0.png,1"], "duplicates: scar/0.png"),
        (["image,group", "scar/0.png,"], "line 2: .*group not empty"),
        (["image,group", "0.png,1"], "none of its 1 ids .* such as burn/0.png, |scar/0.png"),
        (["image,group"], "none of its 0 ids"),
    ],
)
def test_invalid_files_of_groups(folder, tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        with_groups(open_dataset(folder, *CHOICE), table(tmp_path / "g.csv", *rows))


@pytest.mark.parametrize("written", ["NA", "nan", "None"])
def test_missing_values_of_r_and_pandas_are_no_group(folder, tmp_path, written):
    """Or all of them would be one patient."""
    names = images_of(folder)
    rows = [f"{i},{i.split('/')[0]},{written if n < 6 else f'P{n}'}" for n, i in enumerate(names)]
    data = open_dataset(table(folder / "t.csv", "path,label,group", *rows), *CHOICE)
    assert sorted(data.groups) == names[6:]
    assert f"6 images of t.csv have the group '{written}', read as none" in data.notes
    with pytest.raises(InputError, match="--group-disjoint needs the group .* 6 of 12 have none"):
        draw(data, None, 1, 0, group_disjoint=True)
    rows = [row.replace(row.split(",")[1] + ",", "", 1) for row in rows]
    rows = [f"{i},{row.rpartition(',')[2]}" for i, row in zip(names, rows)]
    found = with_groups(
        open_dataset(folder, *CHOICE), table(tmp_path / "g.csv", "image,group", *rows)
    )
    assert sorted(found.groups) == names[6:] and "read as none" in found.notes[0]


def test_what_scores_say_of_groups(folder, tmp_path):
    """Nothing is claimed of images without one."""
    data = open_dataset(folder, *CHOICE)
    for rows, says in (
        (["burn/5.png,P"], "; groups known in part"),
        ([f"{i},{i}" for i in data.rare.ids], " or its groups"),
        ([f"{i},P" for i in data.rare.ids], ""),
        (["common/0.png,P"], "; groups unknown"),
    ):
        groups = with_groups(data, table(tmp_path / "g.csv", "image,group", *rows)).groups
        task = draw_task(data.rare.take(i for i in data.rare.ids if i != "burn/5.png"), 2, 2, 0)
        assert group_word(task.shared(data.rare, groups)) == says


def test_a_file_of_groups_in_latin_1_is_noted(folder, tmp_path):
    file = table(tmp_path / "g.csv", "Image;GROUP", "scar/0.png;M\xfcller")
    file.write_bytes(file.read_text(encoding="utf-8").encode("latin-1"))
    data = with_groups(open_dataset(folder, *CHOICE), file)
    assert data.groups == {"scar/0.png": "Müller"}
    assert "note: g.csv is not UTF-8; read as Windows-1252" in data.summary()


def test_lesions_of_isic_are_groups(tmp_path):
    synthetic.make(tmp_path, base=34, rare=26, size=24, seed=0)
    data = open_dataset(tmp_path)
    groupings = tmp_path / isic2018.GROUPINGS
    rows = [line.split(",") for line in groupings.read_text().splitlines()[1:]]
    assert data.groups == {row[0]: row[1] for row in rows} and len(data.groups) == 60
    groupings.rename(tmp_path / isic2018.GROUND_TRUTH / isic2018.GROUPINGS)  # as in the download
    assert open_dataset(tmp_path).groups == data.groups
    (tmp_path / isic2018.GROUND_TRUTH / isic2018.GROUPINGS).unlink()
    assert open_dataset(tmp_path).groups == {}
    groupings.write_text("image,lesion\na,b\n")
    with pytest.raises(InputError, match="has the columns image,lesion; expected image,lesion_id"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_task_shares_with_its_support_set(folder, tmp_path, seed, capsys):
    data = open_dataset(folder, *CHOICE)
    assert draw(data, 2, 2, seed).shared(data.rare, data.groups) == {
        "copies": 0, "groups": None, "without_group": 12
    }  # fmt: skip
    with pytest.raises(InputError, match="--group-disjoint .* 12 of 12 have none: .*--groups FILE"):
        draw(data, 2, 2, seed, group_disjoint=True)
    rows = [f"{i},{n // 2}" for n, i in enumerate(data.rare.ids)]
    data = with_groups(data, table(tmp_path / "g.csv", "image,group", *rows))
    task = draw(data, 2, 2, seed)
    support = [i for ids in task.support_ids for i in ids]
    expected = sum(
        data.groups[i] in {data.groups[s] for s in support}
        for i in data.rare.ids
        if i not in support
    )
    shared = task.shared(data.rare, data.groups)
    assert shared == {"copies": 0, "groups": expected, "without_group": 0}
    note_on_shared(shared, 8)
    note = f"note: {expected} of 8 query images share a group"
    assert (note in capsys.readouterr().out) == (expected > 0)
    disjoint = draw(data, 2, 2, seed, group_disjoint=True)
    assert disjoint.support_ids == task.support_ids
    assert disjoint.shared(data.rare, data.groups)["groups"] == 0
    assert len(disjoint.query(data.rare)) == 8 - expected
    # As recorded, also where the groups are not given again; of other images it says nothing.
    recorded = Task.from_dict(disjoint.to_dict())
    known = {"copies": 0, "groups": 0, "without_group": 0}
    assert disjoint.shared(data.rare, {}) == recorded.shared(data.rare, {}) == known
    query = disjoint.query(data.rare).ids
    fewer = data.rare.take([i for i in data.rare.ids if i != query[0]], data.rare.classes)
    assert recorded.shared(fewer, {})["groups"] is None
    assert task.shared(data.rare, {})["groups"] is None

    lost = support[0]
    groups = {i: group for i, group in data.groups.items() if i != lost}
    shared = task.shared(data.rare, groups)
    note_on_shared(shared, 8)
    assert shared["without_group"] == 1
    assert "note: 1 images of a task have no group\n" in capsys.readouterr().out
    with pytest.raises(InputError, match=f"1 of 12 have none: {lost}"):
        draw_task(data.rare, 2, 2, seed, groups)


def test_groups_that_leave_no_query_image_are_the_reason(folder, tmp_path):
    data = open_dataset(folder, *CHOICE)
    rows = [f"{i},one" for i in data.rare.ids]
    data = with_groups(data, table(tmp_path / "g.csv", "image,group", *rows))
    task = draw(data, 2, 2, 0, group_disjoint=True)
    with pytest.raises(InputError, match="8 images excluded.*the support set's groups"):
        task.query(data.rare)


def test_a_table_of_images_has_their_groups(folder, tmp_path):
    data = open_dataset(folder, *CHOICE)
    rows = [f"{i},{n}" for n, i in enumerate(data.rare.ids)]
    for header in ("path,group", "PATH;Group"):
        text = [row.replace(",", header[4]) for row in rows]
        groups = with_groups(data, table(tmp_path / "g.csv", header, *text)).groups
        assert groups == {i: str(n) for n, i in enumerate(data.rare.ids)}
    with pytest.raises(InputError, match="g.csv has no column group; .* --group-column"):
        with_groups(data, table(tmp_path / "g.csv", "path,patient", *rows))


def test_notes_on_copies(capsys):
    shared = {"copies": 3, "groups": None, "without_group": 9}
    note_on_shared(shared, 7)
    assert capsys.readouterr().out == "note: 3 of 7 query images are copies of support images\n"


def test_names_of_groups_are_compared_as_people_read_them(folder, tmp_path):
    images = images_of(folder)
    groups = ["P1", "P1\u200b", "p1", "P2"] * 6
    path = table(tmp_path / "g.csv", "image,group", *map(",".join, zip(images, groups)))
    data = with_groups(open_dataset(folder, *CHOICE), path)
    assert set(data.groups.values()) == {"P1", "p1", "P2"}
    assert "groups that differ in capitals or spaces alone: p1 = P1?" in data.summary()


@pytest.fixture
def wards(folder):
    """Two images of each class a patient, in folders of several depths; P1 is in two classes."""
    for n, path in enumerate(sorted(folder.glob("*/*.png"))):
        if path.name != "5.png":
            inside = folder / path.parent.name / f"P{n // 2}" / ("left" if n % 2 else ".")
            inside.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (n, 9, 9)).save(inside / path.name)
            path.unlink()
    (folder / "scar" / "P9").rename(folder / "scar" / "P1\u200b")
    return folder


HINT = "note: images lie in 11 folders within their classes; where a task is drawn, --group-folders"


def test_folders_within_the_classes_are_groups(wards, tmp_path):
    data = open_dataset(wards, *CHOICE)
    assert HINT in data.summary() and data.groups == {}
    found = with_folders(data)
    assert found.groups["burn/P1/left/3.png"] == found.groups["scar/P1\u200b/0.png"] == "P1"
    assert len(found.groups) == 20 and "scar/5.png" not in found.groups
    assert "11 groups (patients, lesions) of 20 images" in found.summary()
    assert "--group-folders" not in found.summary()
    grouped = with_groups(data, table(tmp_path / "g.csv", "image,group", "scar/5.png,P1"))
    assert "--group-folders" not in grouped.summary()


def test_settings_that_take_folders_as_groups(wards, tmp_path):
    settings = {"allow_duplicates": True, "group_folders": True, "cache_folder": None}
    data = open_data(wards, *CHOICE, **settings)
    with pytest.raises(InputError, match="2 of 12 have none: scar/5.png, burn/5.png"):
        draw(data, 2, 2, 0, group_disjoint=True)
    for name in ("burn", "scar"):
        (wards / name / "5.png").unlink()
    data = open_data(wards, *CHOICE, **settings)
    excluded = set()
    for seed in range(4):
        task = draw(data, 2, 1, seed, group_disjoint=True)
        support = {i for ids in task.support_ids for i in ids}
        taken = {data.groups[i] for i in support}
        same = {i for i in data.rare.ids if data.groups[i] in taken}
        assert set(task.excluded_ids) == same - support
        excluded |= set(task.excluded_ids)
    assert len(excluded) > 2
    for other in ({"groups": tmp_path / "g.csv"}, {"group_column": "patient"}):
        with pytest.raises(InputError, match="leave out --groups and --group-column"):
            open_data(wards, *CHOICE, **settings, **other)


def test_folders_where_there_are_none(folder):
    with pytest.raises(InputError, match="--group-folders: clinic has no folders within"):
        with_folders(open_dataset(folder, *CHOICE))
    path = table(
        folder / "t.csv", "path,label", *[f"{i},{i.split('/')[0]}" for i in images_of(folder)]
    )
    with pytest.raises(InputError, match="--group-folders: t has no folders within"):
        with_folders(open_dataset(path, *CHOICE))


def test_folders_of_oct_below_its_parts(tmp_path):
    for n, name in enumerate(oct.CLASSES):
        part = tmp_path / ("train" if n < 4 else ".") / name
        (part / "P1" / "left").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(part / "P1" / "left" / "0.png")
        Image.new("RGB", (4, 4)).save(part / "1.png")
    folders = open_dataset(tmp_path).folders
    assert folders["train/CNV/P1/left/0.png"] == "P1" and len(folders) == len(oct.CLASSES)
