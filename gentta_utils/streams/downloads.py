"""`python -m gentta_utils data`: fetches the data sets that their owners offer, and says how to get the rest.

A download goes on where it stopped, is checked before it is unpacked, and never leaves half a data set behind.
"""

import hashlib
import os
import tarfile
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from ..common.paths import DATA
from ..common.progress import progress
from . import folders, open_vocabulary, photo_maps, photos
from .coop_splits import SPLIT_SETS, read_split

ARCHIVES = {  # name -> address and md5 of a tar that holds the folder of folders.LAYOUTS
    "imagenet-a": (
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
        "c3e55429088dc681f30d81f4726b6595",
    ),
    "imagenet-r": (
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
        "a61312130a589d0ca1a8fca1f2bd3337",
    ),
}
GUIDES = DATA / "datasets.md"  # how to get the others, one section each
PARTIAL = ("imagenet-c", "imagenet-w")  # there is no one folder to look for: a guide only


def guides() -> dict[str, str]:
    """Name of a data set -> how to get it, with DIR in the place of the folder that holds all data sets."""
    _, *sections = GUIDES.read_text(encoding="utf-8").split("\n## ")
    return {name: text.strip() for name, _, text in (section.partition("\n") for section in sections)}


def data(name: str, root: Path) -> None:
    """Get a data set under `root`, or print how to; where it is there already, count its images.

    Raises ValueError for an unknown name or a folder that is not what it should be, OSError for a failed download."""
    known = (*ARCHIVES, *guides(), photos.FOLDER)
    if name not in known:
        raise ValueError(f"unknown data set {name!r}: choose one of {', '.join(known)}")
    if name == photos.FOLDER:
        print(f"photos: {len(photos.PHOTOS)} images, their labels and licences in {photos.copy_to(root)}")
        return
    known_set = (open_vocabulary.SETS | SPLIT_SETS | photo_maps.SETS).get(name)
    here = root / known_set.folder if known_set else None
    if name in PARTIAL or not (here or folders.folder_of(name, root)).is_dir():
        if name not in ARCHIVES:
            print(guides()[name].replace("DIR", str(root)))
            return
        url, md5 = ARCHIVES[name]
        archive = root / url.rpartition("/")[2]
        fetch(url, archive, md5)
        unpack(archive, root, folders.LAYOUTS[name].folder)
    if here:
        of = photo_maps.listing if name in photo_maps.SETS else open_vocabulary.photos_of
        found = read_split(name, root)[0] if name in SPLIT_SETS else of(name, root)
        images, expected = len(found), known_set.images
    else:
        images, expected = len(folders.listing(name, root).paths), folders.LAYOUTS[name].images
    note = "" if images == expected else f" ({expected} are expected)"
    print(f"{name}: {images} images{note} in {here or folders.folder_of(name, root)}")


def fetch(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`; what an earlier call left in `path`.part is kept and continued.

    Raises OSError if the download fails, ValueError if what came has another checksum; it is deleted then."""
    if path.is_file() and _md5(path) == md5:  # whatever came after the download was interrupted
        return
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        total = _receive(url, part)
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(
            f"{url} answered {error.code} ({error.reason}): try later, or look for its new address"
        ) from error
    except (OSError, HTTPException) as error:
        raise OSError(_stopped(url, part, error)) from error
    if part.stat().st_size < total:
        raise OSError(_stopped(url, part, "the connection closed"))
    found = _md5(part)
    if found != md5:
        part.unlink()
        raise ValueError(f"{url} came with the checksum {found}, not {md5}, and was deleted: run the command again")
    os.replace(part, path)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _stopped(url: str, part: Path, why: object) -> str:
    have = part.stat().st_size / 1e6 if part.is_file() else 0
    return f"the download of {url} stopped at {have:.1f} MB ({why}): run the same command again, it goes on from there"


def _receive(url: str, part: Path) -> int:
    """Append to `part` what it lacks of `url`; returns the size that it should have then."""
    begun = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        return begun  # nothing is left to send
    with response:
        if response.status != 206:  # a server that cannot go on sends all of it
            begun = 0
        total = begun + int(response.headers.get("Content-Length") or 0)
        with (
            open(part, "ab" if begun else "wb") as file,
            progress(total=total, initial=begun, desc=part.stem, unit="B", unit_scale=True) as bar,
        ):
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
    return total


def unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpack a tar that holds `folder` to `root`/`folder` in one step, and delete the tar.

    Raises ValueError if it is damaged, unsafe, or holds no such folder."""
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as temporary:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")  # refuses whatever would land outside
            os.replace(Path(temporary) / folder, root / folder)
        except (tarfile.TarError, EOFError, FileNotFoundError) as error:
            why = str(error).splitlines()[0].rstrip(":")  # tarfile lists all that it tried
            raise ValueError(f"{archive} cannot be unpacked ({why}): delete it and run the command again") from error
    archive.unlink()
