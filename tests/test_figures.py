"""python -m plots on the outputs of the scripts."""

import json
import shutil
import sys
from xml.etree import ElementTree

import pytest
from PIL import Image

from common.errors import InputError
from conftest import Chain, call, refused
from datasets import open_dataset
from datasets.episode import load_task

FIGURES = "curves", "pseudo-labels", "confusion", "reliability", "tsne"


def test_every_figure_of_a_chain(chain: Chain, data, tmp_path, capsys):
    call("plots.__main__", chain.root, "--data", data, "--out", tmp_path, "-j", 0)
    made = {path.stem: path for path in tmp_path.glob("*.png")}
    lookalikes = {name for name in made if name.startswith("lookalikes-")}
    assert set(made) - lookalikes == set(FIGURES) and len(lookalikes) == 1
    printed = capsys.readouterr().out
    for path in made.values():
        with Image.open(path) as picture:
            assert picture.width > 600 and len(picture.convert("RGB").getcolors(2**24)) > 10
        assert f"written: {path}\n" in printed


def test_tsne_leaves_out_encoders_that_must_adapt(chain: Chain, data, tmp_path, capsys):
    call("baselines.maml", data, "--model-path", tmp_path / "maml", *"--arch conv4 --image-size 32 "
         "--k-shot 1 --query 1 --n-way 2 --epochs 1 -j 0 --meta-batch 1".split())  # fmt: skip
    scored = ["--k-shot", 2, "--n-way", 2, "-j", 0]
    call("test", data, "--resume", tmp_path / "maml", *scored)
    words = ["--data", data, "--only", "tsne", "--out", tmp_path / "out", "-j", 0]
    call("plots.__main__", tmp_path / "maml", chain.root, *words)
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'maml'} is not in tsne: the encoder of MAML" in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tsne.png"]
    with pytest.raises(InputError, match="nothing to draw"):
        call("plots.__main__", tmp_path / "maml", *words, "--overwrite")


def test_broken_image(chain: Chain, data, tmp_path, capsys):
    root, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(data, root)
    query = load_task(chain.labels).query(open_dataset(root).rare)
    query.paths[0].write_bytes(b"")
    words = [chain.student, "--data", root, "--only", "tsne", "--out", out, "-j", 0]
    with pytest.raises(InputError):
        call("plots.__main__", *words)
    printed = capsys.readouterr().out
    assert "not an image" in printed and "skip them with --skip-unreadable" in printed
    call("plots.__main__", *words, "--skip-unreadable")
    assert [path.name for path in out.iterdir()] == ["tsne.png"]


def test_formats_choice_and_overwriting(chain: Chain, tmp_path, capsys, monkeypatch):
    words = [chain.root, "--out", tmp_path, "--only", "confusion", "--format", "svg"]
    call("plots.__main__", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.svg"]
    first = (tmp_path / "confusion.svg").read_text()
    assert "Predicted class" in first  # text stays text
    message = refused(capsys, monkeypatch, "plots.__main__", *words)
    assert "--overwrite" in message
    call("plots.__main__", *words, "--overwrite")


def test_some_figures_need_images(chain: Chain, tmp_path, capsys, monkeypatch):
    message = refused(
        capsys, monkeypatch, "plots.__main__", chain.labels, "--out", tmp_path, "--only", "tsne"
    )
    assert "tsne" in message


def test_missing_checkpoint(chain: Chain, data, tmp_path, capsys):
    """Scores moved to another machine give all figures but look-alikes."""
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in chain.student.glob("test_*"):
        text = path.read_text().replace(str(chain.student), str(tmp_path / "gone"))
        (moved / path.name).write_text(text)
    call("plots.__main__", moved, "--data", data, "--out", tmp_path / "figures", "-j", 0)
    assert "gone" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "confusion.png",
        "reliability.png",
    ]


def test_without_matplotlib(chain: Chain, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = refused(capsys, monkeypatch, "plots.__main__", chain.root, "--out", tmp_path)
    assert "pip install matplotlib" in message


def test_broken_matplotlib(chain: Chain, tmp_path, capsys, monkeypatch):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise TypeError('of another version')")
    for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    message = refused(capsys, monkeypatch, "plots.__main__", chain.root, "--out", tmp_path / "out")
    assert "figures need matplotlib, " in message and "TypeError: of another" in message


ODD = ("A$1$", r"p$<0.05 \x$", "_病")


def test_odd_names_are_drawn_as_they_stand(chain: Chain, tmp_path, capsys, recwarn, monkeypatch):
    """Scores of classes whose names would be mathematics, or hidden, in matplotlib."""
    from matplotlib import font_manager, get_data_path

    fonts = [f for f in font_manager.fontManager.ttflist if f.fname.startswith(get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)  # not those of this machine
    for path in chain.student.glob("test_*.json"):
        text = path.read_text()
        for name, odd in zip(("DF", "AKIEC", "VASC"), ODD):
            text = text.replace(json.dumps(name), json.dumps(odd))
        (tmp_path / path.name).write_text(text)
    words = ["--out", tmp_path / "out", "--only", "confusion", "--format", "svg"]
    call("plots.__main__", tmp_path, *words)
    printed = capsys.readouterr().out
    assert printed.count("note: no installed font has 病;") == 1 and not recwarn.list
    drawn = ElementTree.parse(tmp_path / "out" / "confusion.svg").iter()
    drawn = " ".join(element.text for element in drawn if element.tag.endswith("text"))
    assert all(drawn.count(word) == 2 for name in ODD for word in name.split()), drawn


@pytest.mark.parametrize("flag", ["--only", "--format"])
def test_unknown_choices(flag, capsys, monkeypatch):
    said = refused(capsys, monkeypatch, "plots.__main__", ".", flag, "nonsense")
    assert f"{flag}: must be one of" in said and "got nonsense" in said
