"""Folders and ZIP files of images, one folder for each class; a ZIP file is read in place, and no path in it is followed."""

import hashlib
import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import torch

from bitsback import limits
from bitsback.data._arrays import REASONS, check_expansion, take
from bitsback.data._dataset import Dataset, Examples, split
from bitsback.data._rows import stored
from bitsback.errors import DataError, brief
from bitsback.extras import require

if TYPE_CHECKING:
    from PIL.Image import Image

    from bitsback.data.settings import ImagesSettings

__all__ = ["IMAGE_SUFFIXES", "is_images", "load_images", "read_images"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm")
"""Suffixes of single files that are taken for images; in folders the content decides."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")
"""Formats that are read; Pillow has more, some of which call other programs or large libraries."""

GREY_MODES, COLOUR_MODES = ("1", "L", "LA", "La"), ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's modes with 8 bits a channel or fewer."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Modes by the number of channels."""

IGNORED = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""Names that systems add by themselves, beside those that begin with a dot."""

TRAIN, TEST, VALIDATION = "train", "test", ("val", "valid", "validation")
"""Folders of the splits."""

Parts = tuple[str, ...]
"""Names of the folders around a file, and its own."""


@dataclass(frozen=True)
class _Picture:
    """Place of an image.

    Attributes:
        parts: names of folders and file below the root.
        split: ``train`` or ``test`` where there are folders of splits, else empty.
        label: name of its class, or None where its folder is none.
    """

    parts: Parts
    split: str = ""
    label: str | None = None

    @property
    def name(self) -> str:
        return "/".join(self.parts)


@dataclass(frozen=True)
class _Tree:
    """Files and folders below a root, hidden ones left out.

    Attributes:
        files: sorted.
        folders: empty ones included.
        read: returns the content of a file.
        root: path of the folder, of the ZIP file, or of the only file.
        is_one_file: whether it is the only file.
    """

    files: list[Parts]
    folders: list[Parts]
    read: Callable[[Parts], bytes]
    root: Path
    is_one_file: bool = False

    def named(self, parts: Parts) -> str:
        """Return the name of a file, for messages."""
        return str(self.root) if self.is_one_file else f"{'/'.join(parts)} in {self.root}"


def is_images(path: Path) -> bool:
    """Return whether a path is a folder, a ZIP file by its suffix, or an image by its suffix."""
    return path.is_dir() or path.suffix.lower() in (".zip", *IMAGE_SUFFIXES)


def load_images(settings: "ImagesSettings", *, inputs_only: bool) -> Dataset:
    """Load the images as a data set.

    Args:
        settings: path, size, channels and split.
        inputs_only: take the images of any folders, and replace their classes by zeros.

    Returns:
        the data set, split and preprocessed; inputs (n, channels, height, width).

    Raises:
        DataError: if folders are no classes, a file is no image, or images differ in size or channels.
        MissingExtraError: without Pillow.
    """
    path = settings.path
    with _opened(path) as tree:
        pictures = _arranged(tree, path, any_folders=inputs_only)
        images, digests = _decoded(pictures, tree, settings, path)
    # a receiver who has the files, but not their folders, sorts them alike
    order = sorted(range(len(pictures)), key=lambda place: (digests[place], pictures[place].label or ""))
    labels = sorted({picture.label for picture in pictures if picture.label is not None})
    number_of = {label: number for number, label in enumerate(labels)}
    targets = torch.tensor([0 if inputs_only else number_of[pictures[place].label or ""] for place in order])
    inputs = stored(images[order], path)
    in_test = torch.tensor([pictures[place].split == TEST for place in order])
    if in_test.any():
        every = Examples(inputs, targets)
        train, test = every.subset((~in_test).nonzero().flatten()), every.subset(in_test.nonzero().flatten())
        test = Examples(test.inputs, test.targets, "test")
    else:
        train, test = split(inputs, targets, settings.test_fraction, settings.split_seed)  # type: ignore[assignment]
    name = path.name if path.is_dir() else path.stem
    return settings.finish(name, train, test, largest=255.0, are_images=True, texts=None if inputs_only else labels)


def read_images(path: Path, settings: "ImagesSettings") -> tuple[np.ndarray, list[str], list[str] | None]:
    """Read the images that a prediction is asked for.

    Args:
        path: of an image, or of a folder or ZIP file of images, whose folders may be classes.
        settings: size and channels.

    Returns:
        images (n, channels, height, width), 8-bit; their names, sorted; and the names of the folders that they would have as
        classes, or None if an image is in none.

    Raises:
        DataError: as :func:`load_images`.
        MissingExtraError: without Pillow.
    """
    with _opened(path) as tree:
        pictures = _arranged(tree, path, any_folders=True)
        images, _ = _decoded(pictures, tree, settings, path)
    labels = [picture.label for picture in pictures if picture.label is not None]
    return images, [picture.name for picture in pictures], labels if len(labels) == len(pictures) else None


@contextmanager
def _opened(path: Path) -> Iterator[_Tree]:
    """Yield the files of a folder, of a ZIP file, or of a single image."""
    require("images", "reading images")
    if path.is_dir():
        yield _folder(path)
        return
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give a folder or a ZIP file of images") from error
    if not is_zip:
        yield _Tree([(path.name,)], [], lambda parts: _content(path), path, is_one_file=True)
        return
    try:
        archive = zipfile.ZipFile(path)
    except REASONS as error:
        raise DataError(f"cannot read {path} as ZIP: {brief(error)}; write it again") from error
    with archive:
        yield _archive(archive, path)


def _is_ignored(parts: Parts) -> bool:
    return any(part.startswith(".") or part in IGNORED for part in parts)


def _folder(path: Path) -> _Tree:
    """List a folder; links to folders are followed."""
    files: list[Parts] = []
    folders: list[Parts] = []

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}; give a folder that can be read") from error

    for place, inner, names in os.walk(path, onerror=refuse, followlinks=True):
        here = Path(place).relative_to(path).parts
        limits.DEPTH.check(len(here), f"{path}, by the depth of its folders,", DataError)
        inner[:] = sorted(name for name in inner if not _is_ignored((name,)))
        folders += [(*here, name) for name in inner]
        files += [(*here, name) for name in names if not _is_ignored((name,))]
        limits.EXAMPLES.check(len(files), f"{path}, by its files,", DataError)
    return _Tree(sorted(files), folders, lambda parts: _content(path.joinpath(*parts)), path)


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise DataError(f"{path} is no file that can be read; move it out of the folder")
        limits.MEMORY.check(path.stat().st_size, str(path), DataError)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give files that can be read") from error


def _archive(archive: zipfile.ZipFile, path: Path) -> _Tree:
    """List a ZIP file, whose names are names only: no file is opened or written under them."""
    members: dict[Parts, zipfile.ZipInfo] = {}
    folders: set[Parts] = set()
    limits.EXAMPLES.check(len(archive.infolist()), f"{path}, by its members,", DataError)
    for member in archive.infolist():
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        shown = brief(repr(member.filename))
        if not parts or ".." in parts or parts[0].startswith("/"):
            raise DataError(f"{path} has a member {shown}, which points out of the archive; write the ZIP file again")
        if _is_ignored(parts):
            continue
        limits.DEPTH.check(len(parts), f"{path}, by the depth of its folders,", DataError)
        folders |= {parts[:depth] for depth in range(1, len(parts) + member.is_dir())}
        if member.is_dir():
            continue
        if parts in members:
            raise DataError(f"{path} has two members {shown}; leave one out")
        members[parts] = member

    def read(parts: Parts) -> bytes:
        member, name = members[parts], f"{'/'.join(parts)} in {path}"
        try:
            # other methods unpack a piece as a whole, whatever its size
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{name} is compressed in an unusual way; write the ZIP file again, deflated")
            limits.MEMORY.check(member.file_size, name, DataError)
            check_expansion(member.file_size, member.compress_size, name)
            with archive.open(member) as stream:
                content = bytes(take(stream, member.file_size))
        except REASONS as error:
            raise DataError(f"cannot read {name}: {brief(error)}; write the ZIP file again") from error
        return content

    return _Tree(sorted(members), sorted(folders), read, path)


def _arranged(tree: _Tree, path: Path, *, any_folders: bool) -> list[_Picture]:
    """Return the images with their splits and classes, by the names of their folders.

    Args:
        tree: files and folders.
        path: of the whole, for messages.
        any_folders: take images outside of class folders as well, and empty folders.

    Returns:
        the images, in the order of their names.

    Raises:
        DataError: without images; and, unless any folders are taken, for images outside of them, and for empty ones.
    """
    if not tree.files:
        raise DataError(f"{path} holds no images; it takes a folder for each class, such as {path / 'cat' / '1.png'}")
    root = _root(tree)
    below = {folder[len(root)] for folder in tree.folders if len(folder) > len(root) and folder[: len(root)] == root}
    splits = _splits(below, path) if _has_folders(tree, (*root, TRAIN)) or any_folders else {}
    pictures = []
    for parts in tree.files:
        inner = parts[len(root) :]
        name = splits.get(inner[0], "") if len(inner) > 1 else ""
        if splits and not name and not any_folders:
            raise DataError(
                f"{path} has folders {' and '.join(sorted(splits))}, and {'/'.join(inner)} is in neither; move it into one"
            )
        inner = inner[1:] if name else inner
        if len(inner) < 2 and not any_folders:
            where = path / TRAIN if name == TRAIN else path / TEST if name else path
            raise DataError(
                f"{'/'.join(parts)} in {path} is in no folder of a class; put the images of each class into a folder of its "
                f"name, such as {where / 'cat' / inner[-1]}"
            )
        pictures.append(_Picture(parts, name, inner[0] if len(inner) > 1 else None))
    if not any_folders:
        _check_classes(pictures, tree, root, splits, path)
    return pictures


def _has_folders(tree: _Tree, folder: Parts) -> bool:
    return any(len(other) > len(folder) and other[: len(folder)] == folder for other in tree.folders)


def _root(tree: _Tree) -> Parts:
    """Return the folder that holds the classes: an only folder around folders is passed through."""
    root: Parts = ()
    while True:
        inside = {parts[: len(root) + 1] for parts in (*tree.files, *tree.folders) if parts[: len(root)] == root}
        only = next(iter(inside)) if len(inside) == 1 else ()
        if not only or only in tree.files or not _has_folders(tree, only):
            return root
        if any(len(parts) == len(only) + 1 and parts[: len(only)] == only for parts in tree.files):
            return root  # images beside folders: it is a class
        root = only


def _splits(below: set[str], path: Path) -> dict[str, str]:
    """Return the split of each folder that is called like one; empty unless there are training images."""
    if TRAIN not in below:
        return {}
    others = sorted(name for name in below if name == TEST or name in VALIDATION)
    if len(others) > 1:
        raise DataError(
            f"{path} has folders {', '.join([TRAIN, *others])}, and bitsback takes two, {TRAIN} and {TEST}: images "
            f"to choose by are training images; join {others[-1]} with {TRAIN}, or move it away"
        )
    return {TRAIN: TRAIN, **dict.fromkeys(others, TEST)}


def _check_classes(pictures: list[_Picture], tree: _Tree, root: Parts, splits: dict[str, str], path: Path) -> None:
    """Raise DataError for a folder of a class without images, and for a test class that has no training images."""
    for top in [(*root, name) for name in splits] or [root]:
        depth = len(top)
        classes = {folder[depth] for folder in tree.folders if len(folder) > depth and folder[:depth] == top}
        filled = {parts[depth] for parts in tree.files if len(parts) > depth and parts[:depth] == top}
        for empty in sorted(classes - filled):
            place = "/".join((*top, empty))
            raise DataError(f"the folder {place} in {path} holds no images; give it some, or remove it")
    known = {picture.label for picture in pictures if picture.split != TEST}
    strange = next((picture for picture in pictures if picture.label not in known), None)
    if strange is not None:
        raise DataError(
            f"{strange.name} in {path} is of the class '{strange.label}', of which there are no training images; add some, or "
            "remove the folder"
        )


def _decoded(
    pictures: Sequence[_Picture], tree: _Tree, settings: "ImagesSettings", path: Path
) -> tuple[np.ndarray, list[bytes]]:
    """Return the images (n, channels, height, width), 8-bit, and the SHA-256 of their files."""
    found: np.ndarray | None = None
    digests = []
    for place, picture in enumerate(pictures):
        content, name = tree.read(picture.parts), tree.named(picture.parts)
        digests.append(hashlib.sha256(content).digest())
        image = _image(content, name, settings)
        if found is None:
            count = len(pictures) * image.size
            limits.MEMORY.check(limits.data_bytes(count, 1), str(path), DataError, "set data.size to a smaller one")
            found = np.empty((len(pictures), *image.shape), np.uint8)
        if image.shape != found.shape[1:]:
            raise _difference(pictures[0].name, found.shape[1:], picture.name, image.shape, path)
        found[place] = image
    assert found is not None  # there are images
    return found, digests


def _difference(first: str, one: tuple[int, ...], second: str, other: tuple[int, ...], path: Path) -> DataError:
    """Return the error of two images that differ in channels or in size."""
    if one[0] != other[0]:
        kinds = {1: "grey", 3: "in colour"}
        return DataError(
            f"{first} in {path} is {kinds[one[0]]} and {second} is {kinds[other[0]]}; set data.channels=3 to repeat grey "
            "levels in three channels, or data.channels=1 to make all images grey"
        )
    shown = [f"{width} x {height} pixels" for _, height, width in (one, other)]
    side = min(*one[1:], *other[1:])
    return DataError(
        f"{first} in {path} has {shown[0]} and {second} has {shown[1]}; set data.size={side} (or another size) to crop each "
        "image to the square in its centre and resample that"
    )


def _image(content: bytes, name: str, settings: "ImagesSettings") -> np.ndarray:
    """Decode an image as 8-bit numbers (channels, height, width)."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise DataError(f"{name} is an animation; give one image a file")
        if image.format in ("JPEG", "MPO"):
            image = ImageOps.exif_transpose(image)
        image = _converted(image, content, name, settings.channels)
        if settings.size is not None:
            side = min(image.size)
            left, top = ((length - side) // 2 for length in image.size)
            image = image.crop((left, top, left + side, top + side))
            image = image.resize((settings.size, settings.size), Image.Resampling.BILINEAR)
        array = np.asarray(image, np.uint8)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS[:-1])
        raise DataError(f"{name} is no image (of {known} or {FORMATS[-1]}); move it away, or convert it") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name} has more pixels than the {Image.MAX_IMAGE_PIXELS:,} that an image may have; make it smaller"
        ) from error
    except Exception as error:  # decoders fail in many ways
        raise DataError(f"{name} cannot be decoded: {brief(error)}; it is damaged, so replace it or move it away") from error
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _converted(image: "Image", content: bytes, name: str, channels: int | None) -> "Image":
    """Return an image in the mode of a number of channels; raises DataError where numbers would be lost."""
    has_wide_channels = image.format == "PNG" and content[24:25] == b"\x10"
    if image.mode not in (*GREY_MODES, *COLOUR_MODES) or has_wide_channels:
        raise DataError(
            f"{name} has more than 8 bits a channel; write it with 8 bits, or give arrays of the numbers (data.kind=npz)"
        )
    wanted = channels or (1 if image.mode in GREY_MODES else 3)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if wanted != 4 and image.getchannel("A").getextrema()[0] != 255:
            raise DataError(f"{name} has transparent pixels; set data.channels=4 to keep the opacity, or flatten the image")
        image = image if wanted != 1 else image.convert("RGB")
    return image if image.mode == MODES[wanted] else image.convert(MODES[wanted])
