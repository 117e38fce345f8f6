# SPDX-License-Identifier: Apache-2.0
"""Files that are broken, missing or out of reach, folders that are, and disks that are full."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

from scripts.benchmarks.bad_inputs.ground import Ground
from scripts.benchmarks.bad_inputs.kind import CHECK, EVALUATE, EXPORT, INFER, NEW, TRAIN, Kind, Spoil, every

READING_IMAGES = (TRAIN, EVALUATE, INFER, CHECK, NEW)
READING_LABELS = (TRAIN, EVALUATE, CHECK, NEW)
UNREADABLE = "cannot be read"


def _image(break_file: Callable[[Ground, Path], None]) -> Spoil:
    def spoil(ground: Ground) -> str:
        file = ground.image(ground.victim())
        break_file(ground, file)
        return file.name

    return spoil


def _label(break_file: Callable[[Ground, Path], None]) -> Spoil:
    def spoil(ground: Ground) -> str:
        file = ground.label(ground.victim())
        break_file(ground, file)
        return f"labels/{file.name}"

    return spoil


def _truncate(ground: Ground, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * ground.draw.uniform(0.02, 0.95))])


def _empty(ground: Ground, file: Path) -> None:
    file.write_bytes(b"")


def _web_page(ground: Ground, file: Path) -> None:
    file.write_text("<html><body>404 Not Found</body></html>", encoding="utf-8")


def _damage(ground: Ground, file: Path) -> None:
    content = bytearray(file.read_bytes())
    at = ground.draw.randrange(len(content) // 4, len(content) - 64)
    content[at : at + 32] = bytes(255 - byte for byte in content[at : at + 32])
    file.write_bytes(content)


def _cut_before_zipping(ground: Ground, file: Path) -> None:
    content = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(content[: 352 + ground.draw.randrange(1000)]))


def _not_nifti(ground: Ground, file: Path) -> None:
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[344:348] = ground.draw.choice((b"????", b"\0\0\0\0", b"n+9\0"))  # where "n+1" stands
    content[:4] = b"????"
    file.write_bytes(gzip.compress(bytes(content)))


def _remove(ground: Ground, file: Path) -> None:
    file.unlink()


def _folder_in_its_place(ground: Ground, file: Path) -> None:
    file.unlink()
    file.mkdir()


def _link_to_itself(ground: Ground, file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def _link_to_nothing(ground: Ground, file: Path) -> None:
    file.unlink()
    file.symlink_to("moved_away.nii.gz")


def _unreadable(ground: Ground, file: Path) -> None:
    file.chmod(0)


def _unreadable_folder(ground: Ground) -> str:
    folder = ground.data / "images"
    folder.chmod(ground.draw.choice((0, 0o200)))
    return "images"


def _links_in_a_circle(ground: Ground) -> str:
    (ground.data / "images" / ground.draw.choice("az")).symlink_to("..", target_is_directory=True)
    return ""


def _no_folder(ground: Ground) -> str:
    shutil.rmtree(ground.data)
    return "images" if ground.command == INFER else str(ground.data)


def _no_image(ground: Ground) -> str:
    shutil.rmtree(ground.data)
    (ground.data / "images").mkdir(parents=True)
    (ground.data / "images/notes.txt").write_text("nothing here", encoding="utf-8")
    return "data"


def _file_for_output(ground: Ground) -> str:
    ground.out.write_text("a file", encoding="utf-8")
    return str(ground.out)


def _closed_output(ground: Ground) -> str:
    ground.out.mkdir(mode=0o555)
    return str(ground.out)


def _closed_models(ground: Ground) -> str:
    ground.models.chmod(0o555)
    return str(ground.models)


def _nothing(ground: Ground) -> str:
    return ""


WRITING = (TRAIN, EVALUATE, INFER, CHECK, NEW)

KINDS = (
    Kind("truncated image", _image(_truncate), every(UNREADABLE, *READING_IMAGES)),
    Kind("truncated label", _label(_truncate), every(UNREADABLE, *READING_LABELS)),
    Kind("empty image file", _image(_empty), every(UNREADABLE, *READING_IMAGES)),
    Kind("empty label file", _label(_empty), every(UNREADABLE, *READING_LABELS)),
    Kind("web page under an image's name", _image(_web_page), every(UNREADABLE, *READING_IMAGES)),
    Kind("bytes of an image damaged", _image(_damage), every(UNREADABLE, *READING_IMAGES)),
    Kind("header promises more voxels than there are", _image(_cut_before_zipping), every(UNREADABLE, *READING_IMAGES)),
    Kind("header is no NIfTI header", _image(_not_nifti), every(UNREADABLE, *READING_IMAGES)),
    Kind("image of the datalist missing", _image(_remove), every("does not exist|missing", TRAIN, EVALUATE, CHECK)),
    Kind("label of the datalist missing", _label(_remove), every("does not exist|missing", TRAIN, EVALUATE, CHECK)),
    Kind("folder under an image's name", _image(_folder_in_its_place), every("", TRAIN, EVALUATE, CHECK)),
    Kind("image is a link to itself", _image(_link_to_itself), every("", TRAIN, EVALUATE, INFER, CHECK)),
    Kind("image is a link to nothing", _image(_link_to_nothing), every("", TRAIN, EVALUATE, INFER, CHECK)),
    Kind("image that may not be read", _image(_unreadable), every("", *READING_IMAGES), unprivileged=True),
    Kind("folder that may not be read", _unreadable_folder, every("", *READING_IMAGES), unprivileged=True),
    Kind("links to folders in a circle", _links_in_a_circle, right=(INFER, NEW)),
    Kind("data folder missing", _no_folder, every("does not exist", *READING_IMAGES)),
    Kind("data folder without images", _no_image, every("", INFER, NEW, TRAIN)),
    Kind("output folder is a file", _file_for_output, every("", *WRITING)),
    Kind("output folder may not be written to", _closed_output, every("", *WRITING), unprivileged=True),
    Kind("model folder may not be written to", _closed_models, every("cannot be written", TRAIN), unprivileged=True),
    Kind("disk full", _nothing, every("cannot be written", TRAIN, EXPORT), disk=30_000),
)
