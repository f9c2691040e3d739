"""Classify images without labels: test.py --predict."""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import InputError, listed
from common.failures import tracebacks_to
from common.files import shortened
from datasets import Collection
from datasets.content import content_key, digests, key_of
from datasets.episode import Task
from datasets.images import ImageSet, check_readable
from datasets.listing import Location
from datasets.open import open_unlabelled, require_contents
from moco.evaluate import FrozenEncoder
from moco.meta import MetaLearner
from moco.outliers import Reference
from moco.outputs import would_overwrite

from .none_of_these import keep, note_on_level, reference_of
from .predictions import (
    Row,
    added_by_readers,
    error_rows,
    merged,
    predicted_rows,
    prediction_summary,
    predictions_text,
    read_predictions,
    require_page,
)
from .run import Evaluation, another_task, note_on_source, write_results


class Predictions(NamedTuple):
    """Predictions of the images called `name`: `rows`, and by id the `paths` of the images that are
    there. `page` marks a sheet as one of this result."""

    name: str
    rows: list[Row]
    paths: dict[str, Location]
    page: str


def predict_images(run: Evaluation, data: Collection | None, task: Task) -> Predictions:
    """Classify images without labels; add new and changed ones to an earlier result."""
    settings, cache = run.settings, run.settings.cache_folder
    images, found, errors = open_unlabelled(
        settings.predict, settings.skip_unreadable, settings.quiet
    )
    files = run.paths(f"predict_{shortened(images.name)}_{run.classifier}_{task.name}")
    tracebacks_to(files[0].parent)
    earlier = run.earlier(files) or {}
    page = earlier.get("page") or secrets.token_hex(8)
    if settings.sheet and not settings.overwrite:
        require_page(settings.sheet, page, images.name)
    support = None
    if not settings.load_cla:
        assert data is not None
        support = task.support(data.rare)
        require_contents(task, data.rare, None, cache)
    if data:
        note_on_source(task, data.rare)
    encoder = run.encoder()
    reference, file = reference_of(run, encoder, data, task)
    contents = dict(zip(images.ids, digests(images.paths, cache)))
    about = {
        "task": task.to_dict(), "classifier": run.classifier,
        "images": {**images.fingerprint(), "content": key_of(images.ids, contents.values())},
        "support": content_key([support], cache) if support else None, "data": found,
        "none_of_these": reference and reference.about,
        "folders": [str(path.resolve()) for path in settings.predict], "page": page, **run.about(),
    }  # fmt: skip
    contents |= dict.fromkeys(errors, "")
    rows, previous = earlier_rows(run, files, earlier, about, task, contents)
    known = previous.get("contents", {})
    if file and reference:
        keep(reference, file)
    about |= {name: previous[name] for name in ("temperature",) if name in previous}
    read = {row["image"] for row in rows if "prediction" in row}
    new = images.take(i for i in images.ids if i not in read or known.get(i) != contents[i])
    changed = bool(new) or not rows or any(known.get(i) != "" for i in errors)
    if changed:
        added, calibrated = classified(run, encoder, reference, support, new, task.classes)
        about |= calibrated
        if previous:
            print(f"{len(new)} new or changed images; {len(images) - len(new)} as before")
        rows = merged(rows, error_rows(errors) + added, task.classes)
    about["contents"] = known | contents
    same_level = previous.get("args", {}).get("none_level") == settings.none_level  # of verdicts
    same_place = all(previous.get(name) == about[name] for name in ("page", "folders"))
    if changed or not (same_level and same_place):
        table = predictions_text(rows, task.classes, settings.none_level)
        write_results(files, about, table, settings.overwrite)
    else:
        print(f"already done: {files[0]}, {files[1]}")
    if gone := [row["image"] for row in rows if row["image"] not in contents]:
        print(f"note: {len(gone)} images are no longer there; their rows are kept: {listed(gone)}")
    used = f", temperature {about['temperature']:.2f}" if "temperature" in about else ""
    print(f"{task}; classifier: {run.classifier}{used}; {len(rows)} images of {images.name}")
    if reference:
        note_on_level(reference, settings.none_level)
    print(prediction_summary(rows, task.classes, settings.none_level))
    return Predictions(images.name, rows, dict(zip(images.ids, images.paths)), about["page"])


def classified(
    run: Evaluation, encoder: FrozenEncoder | MetaLearner, reference: Reference | None,
    support: ImageSet | None, new: ImageSet, classes: Sequence[str],
) -> tuple[list[Row], dict[str, float]]:  # fmt: skip
    """Return the rows of `new` images, and the temperature of the classifier if it has one."""
    check_readable(*([new, support] if support else [new]))
    if not new:
        return [], {}
    probabilities, calibrated = run.predictor(encoder, support, new)(support, new)
    none = reference.none_of_these(encoder.embed(new)) if reference else None
    return predicted_rows(new, probabilities, classes, none), calibrated


def earlier_rows(
    run: Evaluation, files: tuple[Path, Path], previous: dict, about: dict, task: Task,
    there: dict[str, str],
) -> tuple[list[Row], dict[str, Any]]:  # fmt: skip
    """Return the rows of an earlier result of this command, and what its JSON file says: nothing if
    `previous`, its JSON file, is empty.

    Of a result that must be made again, with a note, only what readers have added to the rows. Of
    the data folder only the support and the base images are compared. Raises InputError for a
    result of another command or of images in another folder, for one that would lose rows of images
    that are not `there` (contents by id) any more or its scores for none of these, and for one of
    an earlier version, which does not record each image.
    """
    if not previous:
        return [], {}
    if "contents" not in previous:
        raise InputError(
            "the earlier predictions do not record which images they are of; replace them with "
            "--overwrite, or choose another folder with --output"
        )
    others = another_task(previous, task)
    others += ["other support images"] * (previous.get("support") != about["support"])
    before = previous["contents"]
    read = [i for i in before if before[i]]
    moved = read and all(before[i] == there.get(i) for i in read)  # the folder, not the images
    if previous.get("folders", about["folders"]) != about["folders"] and not moved:
        others.append("another folder")
    same = {name: about["args"][name] for name in ("data", "skip_unreadable")}
    args = {**previous["args"], **same}
    done = run.is_done(files, {**previous, "args": args}, others)
    note, compared = "", dict(previous.get("none_of_these") or {})
    compared.pop("format", None)  # of the file of the reference, in results of earlier versions
    if compared and about["none_of_these"] is None:
        raise would_overwrite(files, ["without scores for none of these now"])
    if done and compared != (about["none_of_these"] or {}):
        done, note = False, "note: with other scores for none of these than before: made again"
    rows = read_predictions(files[1], task.classes) if files[1].exists() else []
    if done:
        return rows, previous
    if rows and (gone := [name for name in before if name not in there]):
        lost = f"without the rows of {len(gone)} images that are no longer there: {listed(gone, 3)}"
        raise would_overwrite(files, [lost])
    if note:
        print(note)
    remarks = ((row["image"], added_by_readers(row, task.classes)) for row in rows)
    return [{"image": image, **added} for image, added in remarks], {}
