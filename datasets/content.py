"""The content of images: digests of files and of rows of arrays, kept between runs."""

import contextlib
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from common.errors import pass_on
from common.files import folder_lock, private_folder, write_utf8

from .images import ImageSet, _array, _load, unreadable
from .listing import ArrayImage, Location
from .threads import in_threads

FORMAT = 1  # of the digests
FOLDER = "contents"  # in the cache folder, with a lock of its own: decoding holds the other long
CHUNK = 2**20  # bytes read at a time


def copies(paths: Sequence[Location], cache: Path | None) -> list[list[int]]:
    """Return lists of the rows of `paths` that have the same content, at least two in each.

    Files have the same content if their bytes are equal, rows of arrays if type, shape and values
    are. Only files of equal size are read. What is empty or cannot be decoded is not an image and
    has no copies. `cache` as in `digests`.
    """
    sizes = [-1 if isinstance(path, ArrayImage) else _size(path) for path in paths]
    number = Counter(sizes)
    suspects = [row for row, size in enumerate(sizes) if size and number[size] > 1]
    digest_of = dict(zip(suspects, digests([paths[row] for row in suspects], cache)))
    same = defaultdict(list)
    for row, digest in digest_of.items():
        if digest:
            same[digest].append(row)
    found = [rows for rows in same.values() if len(rows) > 1]

    def kind(row: int) -> tuple[str, str]:
        return digest_of[row], os.path.splitext(str(paths[row]))[1].lower()

    # Of files of equal content the extension decides whether they can be decoded: one of each is.
    sample = {kind(row): paths[row] for rows in found for row in rows}
    broken = unreadable(path for path in sample.values() if not isinstance(path, ArrayImage))
    images = ([row for row in rows if sample[kind(row)] not in broken] for rows in found)
    return [rows for rows in images if len(rows) > 1]


def content_key(sets: Sequence[ImageSet], cache: Path | None) -> str:
    """Return a hash of the ids and contents of the images in `sets`, in order."""
    ids, paths = ([x for s in sets for x in getattr(s, name)] for name in ("ids", "paths"))
    return key_of(ids, digests(paths, cache))


def key_of(ids: Iterable[str], digests: Iterable[str]) -> str:
    """Return a hash of images' ids and the digests of their contents, in order."""
    rows = "\n".join(f"{i}\t{digest}" for i, digest in zip(ids, digests))
    return hashlib.sha256(rows.encode()).hexdigest()


def digests(paths: Sequence[Location], cache: Path | None) -> list[str]:
    """Return a digest of the content of each image, empty if it cannot be read.

    Digests are kept in the folder `cache`, and computed again for a file whose `stamp` changed. Of
    several processes, one computes them and the others wait. Without a folder to write to, each
    process computes them.
    """
    where = [_source(path) for path in paths]
    with _kept(where[0][0] if where else "", cache) as known:
        changed = {}
        for source in dict.fromkeys(source for source, _ in where):
            try:
                current = stamp(source.partition("\0")[0])
            except OSError:  # missing: reported with the unreadable images
                known.pop(source, None)
                continue
            if known.get(source, [None])[0] != current:
                changed[source] = current
        if any("\0" in source for source in changed):
            _load.cache_clear()  # of the file before it changed
        for source, found in zip(changed, in_threads(_hash, changed, "comparing images", "file")):
            known[source] = [changed[source], found]
        return ["".join(known.get(source, [0, []])[1][row : row + 1]) for source, row in where]


def stamp(file: str | Path) -> list[int]:
    """Return size, modification time and inode change time of a file; raises OSError.

    The change time cannot be set by programs, so it also differs after an edit that keeps size and
    modification time. On Windows, and on file systems without one, it is the time of creation.
    """
    status = os.stat(file)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _source(path: Location) -> tuple[str, int]:
    """Return the key of a file or of an array in it, and the row there."""
    if isinstance(path, ArrayImage):
        return f"{os.path.abspath(path.file)}\0{path.array}", path.row
    return os.path.abspath(path), 0


def _size(file: Path) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        return 0


def _hash(source: str) -> list[str]:
    """Return the digests of the rows of `source`, or of the whole file, in a list."""
    file, separator, array = source.partition("\0")
    try:
        if separator:
            rows = _array(Path(file), array)
            kind = f"{rows.dtype} {rows.shape[1:]}".encode()
            return [hashlib.sha256(kind + row.tobytes()).hexdigest()[:32] for row in rows]
        if not os.path.isfile(file):  # opening a named pipe blocks
            return []
        digest = hashlib.sha256()
        with open(file, "rb") as content:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
        return [digest.hexdigest()[:32]]
    except Exception as error:  # damaged or no permission: reported with the unreadable images
        pass_on(error, file)
        return []


@contextlib.contextmanager
def _kept(first: str, cache: Path | None) -> Iterator[dict[str, list]]:
    """Provide [stamp, digests] by source, as kept in `cache` for the data set with the file
    `first`; changes are written when the block ends."""
    file = None
    known: dict[str, list] = {}
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # read-only or full: computed every time
            if cache:
                folder = private_folder(private_folder(cache) / FOLDER)  # each, not its parents
                stack.enter_context(folder_lock(folder))
                key = hashlib.sha256(os.fsencode(os.path.dirname(first))).hexdigest()[:16]
                file = folder / f"{key}-{FORMAT}.json"
        if file:
            with contextlib.suppress(OSError, ValueError):  # missing or damaged: computed anew
                kept = json.loads(file.read_bytes())
                if isinstance(kept, dict):
                    known = {key: entry for key, entry in kept.items() if _is_entry(entry)}
        before = dict(known)
        yield known
        if file and known != before:
            values = {key: entry for key, entry in known.items() if entry[1]}
            with contextlib.suppress(OSError):
                write_utf8(file, json.dumps(values))


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[1], list)
        and all(isinstance(digest, str) for digest in entry[1])
    )
