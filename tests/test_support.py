"""--support: a task whose support set is chosen, through the stages."""

import csv
import json
import shutil
from dataclasses import replace

import pytest

from common.errors import InputError
from conftest import call, refused
from datasets import open_dataset
from datasets.episode import Task, choose_task, draw_task, load_task, save_task
from datasets.open import UNREADABLE, read_support
from moco.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def found(data):
    return open_dataset(data)


@pytest.fixture(scope="module")
def rare(found):
    return found.rare


def ids_of(rare, name, count):
    return [i for i, n in zip(rare.ids, rare.labels) if rare.classes[n] == name][:count]


@pytest.fixture(scope="module")
def support(rare):
    """Different numbers of images for each class."""
    return {"DF": ids_of(rare, "DF", 1), "VASC": ids_of(rare, "VASC", 3)}


def write(path, support, column="image"):
    with open(path, "w", newline="") as file:
        rows = [(i, name) for name, ids in support.items() for i in ids]
        csv.writer(file).writerows([(column, "label"), *rows])
    return path


def test_a_chosen_task(rare, support):
    task = choose_task(rare, support)
    assert task.chosen and not draw_task(rare, 2, 1, 0).chosen
    assert task.classes == ("DF", "VASC") and task.name == "2way_chosen"
    assert "chosen, not drawn (DF 1, VASC 3)" in str(task)
    assert task.support(rare).ids == (*support["DF"], *support["VASC"])
    assert len(task.query(rare)) == 7 + 8 - 4
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    assert task.same_support(choose_task(rare, {k: v[::-1] for k, v in support.items()}))
    assert not task.same_support(choose_task(rare, {**support, "DF": ids_of(rare, "DF", 2)}))
    groups = {i: i for i in rare.ids} | {i: "one" for i in ids_of(rare, "DF", 3)}
    disjoint = choose_task(rare, support, groups)
    assert set(disjoint.excluded_ids) == set(ids_of(rare, "DF", 3)[1:])


def test_a_drawn_task_has_a_seed(rare):
    values = draw_task(rare, None, 2, 0).to_dict()
    with pytest.raises(ValueError):
        Task.from_dict({**values, "seed": None})


def test_a_class_without_query_images(rare, support):
    task = choose_task(rare, {**support, "DF": ids_of(rare, "DF", 99)})
    assert task.query(rare, complete=False).counts() == {"DF": 0, "VASC": 5}
    with pytest.raises(InputError, match="no query images of 'DF'.*--predict"):
        task.query(rare)


@pytest.mark.parametrize("column", ["image", "path"])
@pytest.mark.parametrize("kind", ["id", "absolute", "relative"])
def test_ids_and_paths(found, rare, support, tmp_path, monkeypatch, column, kind):
    path_of = dict(zip(rare.ids, rare.paths))
    root = next(iter(path_of.values())).parent
    names = {"id": lambda i: i, "absolute": lambda i: path_of[i],
             "relative": lambda i: path_of[i].relative_to(root)}[kind]  # fmt: skip
    listed = {name: [names(i) for i in ids] for name, ids in support.items()}
    monkeypatch.chdir(root)
    assert read_support(found, write(tmp_path / "s.csv", listed, column)) == support


def test_a_column_of_all_images(found, rare, support, tmp_path):
    chosen = {i for ids in support.values() for i in ids}
    marks = iter(["x", "1", "yes", "True"])
    lines = ["path,label,support", "some/base.jpg,NV,", "other.jpg,NV,0"]
    for i, n in zip(rare.ids, rare.labels):
        lines.append(f"{i},{rare.classes[n]},{next(marks) if i in chosen else 'no'}")
    (tmp_path / "all.csv").write_text("\n".join(lines))
    assert read_support(found, tmp_path / "all.csv") == support


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["nowhere.jpg,DF"], "rare images of isic2018: line 2: nowhere.jpg is not an image there$"),
        (["{nv},NV"], "line 2: ISIC_.* is of 'NV', which is no rare class"),
        (["{nv},DF"], "line 2: ISIC_.* is of 'NV', which is no rare class"),
        (["{df},VASC"], "is of class 'DF', not 'VASC'"),
        (["{df},DF,1", "{df},DF,2"], "has duplicates"),
        (["{df},DF"], "at least 2 of the rare classes 'DF', 'AKIEC', 'VASC', got 'DF'"),
    ],
)
def test_invalid_files(found, rare, support, tmp_path, lines, expected):
    head = "image,label,age" if lines[0].endswith(",1") else "image,label"
    text = "\n".join([head, *lines]).format(df=support["DF"][0], nv=ids_of(found.base, "NV", 1)[0])
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(InputError, match=expected):
        choose_task(rare, read_support(found, tmp_path / "s.csv"))


def test_a_file_in_latin_1_is_noted(found, rare, support, tmp_path, capsys):
    file = write(tmp_path / "s.csv", support)
    head, *lines = file.read_text().splitlines()
    text = "\n".join([f"{head},ward", *(f"{line},S\xfcd" for line in lines)])
    file.write_bytes(text.replace(",", ";").encode("latin-1"))
    assert read_support(found, file) == support
    assert "note: s.csv is not UTF-8; read as Windows-1252" in capsys.readouterr().out


def test_through_all_stages(chain, data, rare, support, tmp_path, capsys, monkeypatch):
    every = {**support, "DF": ids_of(rare, "DF", 99)}  # a class that is all support
    file, labels, d = write(tmp_path / "s.csv", every), tmp_path / "labels", tmp_path / "d"
    labelling = ["generate_pseudo", "--datadir", data, "--resume", chain.pretrained,
                 "--savedir", labels, "-j", 0]  # fmt: skip
    call(*labelling, "--support", file)
    printed = capsys.readouterr().out
    assert "chosen, not drawn (DF 7, VASC 3)" in printed and "only --predict" in printed
    task = load_task(labels)
    assert task.chosen and task.classes == ("DF", "VASC")
    call(*labelling, "--support", file)
    assert "already done" in capsys.readouterr().out
    # No drawn task replaces it, not even on request; another chosen one on request only.
    for more in ([], ["--overwrite"]):
        assert "was chosen" in refused(capsys, monkeypatch, *labelling, *more)
    assert load_task(labels) == task
    other = write(tmp_path / "other.csv", support)
    assert "would be overwritten" in refused(capsys, monkeypatch, *labelling, "--support", other)
    call("main_distill", data, "--savedir", labels, "--model_path", d, "-j", 0, "--epochs", 1)
    assert load_checkpoint(d)["task"] == task.to_dict()
    # Predictions work, scores need query images of each class.
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(rare.paths[0], new / "0.jpg")
    out = ["--output", tmp_path / "out", "-j", 0]
    call("test", "--resume", d, "--load-cla", "--predict", new, *out)
    assert (tmp_path / "out" / "predict_new_direct_2way_chosen.csv").is_file()
    call("test", data, "--resume", chain.pretrained, "--support", file, "--predict", new, *out)
    assert (tmp_path / "out" / "predict_new_lr_2way_chosen.csv").is_file()
    error = refused(capsys, monkeypatch, "test", data, "--resume", d)
    assert "no query images of 'DF'" in error and "--predict" in error
    # A student's task is its own.
    error = refused(capsys, monkeypatch, "test", data, "--resume", d, "--support", other)
    assert "was trained for another task" in error
    call("plots.__main__", labels, "--out", tmp_path / "figures",
         "--only", "pseudo-labels")  # fmt: skip


def test_scores_of_a_chosen_task(chain, data, rare, support, tmp_path, capsys, monkeypatch):
    file = write(tmp_path / "s.csv", support)
    argv = ["test", data, "--resume", chain.pretrained, "-j", 0, "--output", tmp_path]
    call(*argv, "--support", file)
    scores = json.loads((tmp_path / "test_lr_2way_chosen.json").read_text())
    task = Task.from_dict(scores["task"])
    assert task == choose_task(rare, support) and "chosen, not drawn" in capsys.readouterr().out
    write(file, {**support, "DF": ids_of(rare, "DF", 2)})  # the file has changed
    assert "would be overwritten" in refused(capsys, monkeypatch, *argv, "--support", file)
    for flag in ("--k-shot", "--n-way", "--seed"):
        error = refused(capsys, monkeypatch, *argv, "--support", file, flag, 2)
        assert f"then is not drawn; leave out {flag} (" in error or error.endswith(flag), error
    error = refused(capsys, monkeypatch, *argv, "--support", file, "--savedir", chain.labels)
    assert "no --savedir" in error


def test_a_broken_task_file_may_be_replaced(chain, data, rare, support, tmp_path):
    save_task(tmp_path, choose_task(rare, support), {})
    (tmp_path / "task.json").write_text("{")
    call("generate_pseudo", "--datadir", data, "--resume", chain.pretrained, "--savedir", tmp_path,
         "--k-shot", 2, "-j", 0, "--overwrite")  # fmt: skip
    assert not load_task(tmp_path).chosen


@pytest.mark.parametrize("marks", ["x ", "1.0 0.0", "TRUE False", "support query", "yes n"])
def test_marks_in_the_column_support(found, rare, support, tmp_path, marks):
    yes, no = marks.split(" ")
    taken = {i for ids in support.values() for i in ids}
    rows = [(i, rare.classes[n], yes if i in taken else no) for i, n in zip(rare.ids, rare.labels)]
    with open(tmp_path / "s.csv", "w", newline="") as file:
        csv.writer(file).writerows([("Image", "label", "Support"), *rows])
    assert read_support(found, tmp_path / "s.csv") == support


def test_a_mark_that_is_neither(found, rare, support, tmp_path):
    name = support["DF"][0]
    (tmp_path / "s.csv").write_text(f"image,label,support\n{name},DF,maybe\n")
    with pytest.raises(InputError, match="line 2: the column support must be one of .*'maybe'"):
        read_support(found, tmp_path / "s.csv")


def test_a_support_image_as_typed(smears, tmp_path):
    found = open_dataset(smears)
    name, label = found.rare.ids[0], found.rare.classes[0]
    typed = name.replace("/", "\\")
    (tmp_path / "s.csv").write_text(f"image;label\n{typed};{label}\u200b\n", encoding="utf-8")
    assert read_support(found, tmp_path / "s.csv") == {label: [name]}


def test_support_images_that_cannot_be_read_or_are_copies(found, support, tmp_path):
    one, other = support["DF"][0], support["VASC"][0]
    data = found.without([one], UNREADABLE)
    data = replace(data, base=replace(data.base, copies={"again": "ISIC_1"}))
    (tmp_path / "s.csv").write_text(f"image,label\n{one},DF\nagain,DF\n{other},VASC\n")
    says = f"line 2: {one} cannot be read, line 3: again is a copy of ISIC_1$"
    with pytest.raises(InputError, match=says):
        read_support(data, tmp_path / "s.csv")


@pytest.mark.parametrize("shots", [(1, 3), (2, 2)])
def test_unequal_numbers_are_noted(chain, data, rare, tmp_path, capsys, shots):
    support = {name: ids_of(rare, name, n) for name, n in zip(("DF", "VASC"), shots)}
    table = write(tmp_path / "support.csv", support)
    argv = [data, "--resume", chain.pretrained, "--support", table, "-j", 0]
    call("test", *argv, "--normalize", "--output", tmp_path)
    unequal = shots == (1, 3)
    note = "note: unequal numbers of support images (DF 1, VASC 3)"
    assert (note in capsys.readouterr().out) == unequal
    call("generate_pseudo", *argv, "--normalize", "--savedir", tmp_path / "labels")
    assert (note in capsys.readouterr().out) == unequal
    call("test", *argv, "--output", tmp_path / "plain")
    assert (note in capsys.readouterr().out) == unequal
