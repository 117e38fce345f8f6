# SPDX-License-Identifier: Apache-2.0
"""Derive the case, the part of the dataset and the channel from the names of files and folders."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

from scripts.images.header import NNUNET_CHANNEL, SLICER, case_name, ending_of

LABEL_WORDS = (
    "corrected_labels",  # the folder for labels that annotators have corrected, see docs/labelling.md
    "segmentations", "segmentation", "segs", "seg", "labelmaps", "labelmap", "labels", "label", "masks", "mask",
    "groundtruth", "ground_truth", "gt", "annotations", "annotation",
)  # fmt: skip
"""Words at either end of a name that mark a file or folder as labels."""

IMAGE_WORDS = ("images", "image", "imaging", "imgs", "img", "scans", "scan", "volumes", "volume", "vols", "vol")
"""Words at either end of a name that mark a file or folder as images."""

TRAINING, VALIDATION, TEST = "training", "validation", "test"
PART_WORDS = {
    **dict.fromkeys(("ts", "test", "testing"), TEST),
    **dict.fromkeys(("va", "val", "valid", "validation"), VALIDATION),
    **dict.fromkeys(("tr", "train", "training"), TRAINING),
}

SEPARATOR = r"[ _.\-]"
_PART = rf"({'|'.join(PART_WORDS)})"
_IMAGE_PARTS = frozenset(IMAGE_WORDS)
_LABEL_PARTS = frozenset(word for words in LABEL_WORDS for word in words.split("_"))
_SETS = {"set", "sets", "data", "dataset", "cases"}


def _image_folder_pattern() -> re.Pattern[str]:
    """Match an image word alone or before a part: `imagesTr`, `imagesTs_old`. `scan_7` may be a case: no match."""
    return re.compile(rf"(?:{'|'.join(IMAGE_WORDS)}){SEPARATOR}?(?:{_PART}\d*(?:{SEPARATOR}.*)?)?", re.IGNORECASE)


def _label_folder_pattern() -> re.Pattern[str]:
    """Match names that begin or end with a word: `labelsTr`, `labels_old`, `labels2`, `expert_labels`.

    Names that negate the word (`no_labels`), name both roles (`images_and_masks`) or number a case (`mask_7`) do not
    match.
    """
    both = rf".*{SEPARATOR}(?:and|with){SEPARATOR}|.*(?:{'|'.join(IMAGE_WORDS)}){SEPARATOR}(?:{'|'.join(LABEL_WORDS)})$"
    return re.compile(
        rf"(?!(?:no|not|without){SEPARATOR}|{both})(?:.*{SEPARATOR})?(?:{'|'.join(LABEL_WORDS)})"
        rf"(?:{SEPARATOR}?{_PART}{SEPARATOR}?\d*|(?<=s){SEPARATOR}?\d+|{SEPARATOR})?(?:{SEPARATOR}(?=.*[a-z]).*)?",
        re.IGNORECASE,
    )


def _file_pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Match one of the words alone, before a separator or a digit, or at the end after a separator."""
    word = f"(?:{'|'.join(words)})"
    return re.compile(
        rf"{word}|{word}(?:{SEPARATOR}+|(?=\d))(?P<rest>.+)|(?P<start>.+?){SEPARATOR}+{word}", re.IGNORECASE
    )


_LABEL_FOLDER, _IMAGE_FOLDER = _label_folder_pattern(), _image_folder_pattern()
_LABEL_FILE, _IMAGE_FILE = _file_pattern(LABEL_WORDS), _file_pattern(IMAGE_WORDS)


def stem_of(path: str) -> str:
    """Return the file name without its image ending, but with `.seg`; in NFC, so that accents compare equal."""
    mark = ".seg" if ending_of(path) in SLICER else ""  # this ending marks label files
    return unicodedata.normalize("NFC", case_name(path) + mark)


def is_label_folder(name: str) -> bool:
    """Whether a folder's name marks labels: `labels`, `labelsTr`, `labels_old`, `expert_masks`, `TestMasks`, ..."""
    return _LABEL_FOLDER.fullmatch(name) is not None or _has_role_and_part(name, _LABEL_PARTS, _IMAGE_PARTS)


def is_image_folder(name: str) -> bool:
    """Whether a folder's name marks images: `images`, `imagesTs`, `test_images`, `scans`, ..."""
    return _IMAGE_FOLDER.fullmatch(name) is not None or _has_role_and_part(name, _IMAGE_PARTS, _LABEL_PARTS)


def is_part_folder(name: str) -> bool:
    """Whether a folder holds many cases and never a single one: `train`, `Testing Set`, `labelled`, ..."""
    return name.lower() in {"labelled", "labeled", "unlabelled", "unlabeled"} or _part_named_by(name) is not None


def _has_role_and_part(name: str, role: frozenset[str], other: frozenset[str]) -> bool:
    words = set(_words(name))
    return bool(words & role) and not words & other and _part_named_by(name) is not None


def _words(name: str) -> list[str]:
    """Split a name where it has no letters, and before capitals: `TestSet_2` gives `test` and `set`."""
    words = re.split(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", name)
    return [word.lower() for word in words if word]


def _part_named_by(folder: str) -> str | None:
    """Return the part that the name of a folder stands for, or `None`.

    A name that says more than the part and its role, such as `test_subject_3`, `test001` or `ses-test`, may be that of
    a case, and one with several parts (`train_test`) names none.

    >>> _part_named_by("Testing Set"), _part_named_by("test_subject_3"), _part_named_by("latest")
    ('test', None, None)
    """
    match = _LABEL_FOLDER.fullmatch(folder) or _IMAGE_FOLDER.fullmatch(folder)
    if match and match[1]:
        return PART_WORDS[match[1].lower()]
    words = _words(folder)
    known = PART_WORDS.keys() | _IMAGE_PARTS | _LABEL_PARTS | _SETS
    parts = {PART_WORDS[word] for word in words if word in PART_WORDS}
    plain = len(parts) == 1 and set(words) <= known and not re.search(r"\d", folder)
    return parts.pop() if plain else None


def is_label_stem(stem: str) -> bool:
    """Whether a file's stem marks a label: `a_seg`, `a-label`, `segmentation`, `mask_007`, `sub-1_seg-vert_msk`, ..."""
    bids = bids_parts(stem)
    return _LABEL_FILE.fullmatch(stem) is not None or (bids is not None and bool(bids[1] & BIDS_LABELS))


BIDS_LABELS = {"dseg", "probseg", "mask", "msk", "seg"}
"""Suffixes of label files in BIDS, and in VerSe, which follows it."""


def bids_parts(stem: str) -> tuple[dict[str, str], set[str]] | None:
    """Return the entities and suffixes of a BIDS name; `None` for other names.

    >>> bids_parts("sub-01_ses-2_T1w")
    ({'sub': '01', 'ses': '2'}, {'T1w'})
    """
    if not re.match(r"sub-[^_-]+(_|$)", stem):
        return None
    parts = stem.split("_")
    return dict(part.split("-", 1) for part in parts if "-" in part), {part for part in parts if "-" not in part}


def bids_agreement(label: str, image: str) -> int:
    """Return the number of entities that two BIDS stems share; 0 if they cannot belong to the same image.

    Entities that both have must agree. If the label also names the suffix of an image (`T1w` in
    `sub-01_T1w_label-lesion_dseg`), the image must have it.
    """
    of_label, of_image = bids_parts(label), bids_parts(image)
    if of_label is None or of_image is None:
        return 0
    named = of_label[1] - BIDS_LABELS
    shared = of_label[0].keys() & of_image[0].keys()
    agree = all(of_label[0][key] == of_image[0][key] for key in shared)
    return len(shared) if agree and (not named or of_image[1] <= named) else 0


def split_roles(paths: Sequence[str], label_folder: str | None = None) -> tuple[list[str], list[str]]:
    """Divide relative paths into images and labels.

    Args:
        paths: POSIX paths of image files.
        label_folder: the folder of labels, relative to the same folder as `paths`; only files in it are labels. By
            default, files are labels if they are in folders with names such as `labels` or `masks`, or if their own
            name contains such a word and they are not in a folder of images. If `label_folder` is given, such files
            outside of it count neither as labels nor as images, unless there are no other images.
    """
    if label_folder is not None:
        below = label_folder.rstrip("/") + "/"
        others = [p for p in paths if not p.startswith(below)]
        return split_roles(others)[0] or others, [p for p in paths if p.startswith(below)]
    any_label_folder = any(_folder_role(path) == "label" for path in paths)
    labels = {path for path in paths if _is_label(path, any_label_folder)}
    return [p for p in paths if p not in labels], [p for p in paths if p in labels]


def _folder_role(path: str) -> str | None:
    for folder in reversed(path.split("/")[:-1]):
        if is_label_folder(folder):
            return "label"
        if is_image_folder(folder):
            return "image"
    return None


def _is_label(path: str, any_label_folder: bool) -> bool:
    role = _folder_role(path)
    if role == "label" or (role == "image" and any_label_folder):
        return role == "label"
    return is_label_stem(stem_of(path))


def without_label_word(stem: str) -> str:
    """Remove a label word: `a_seg` becomes `a`, `label0007` `0007`, `segmentation` empty; others are unchanged."""
    return _without(stem, _LABEL_FILE)


def without_image_word(stem: str) -> str:
    """Remove an image word: `a_image` becomes `a`, `img0007` `0007`, `imaging` empty; others are unchanged."""
    return _without(stem, _IMAGE_FILE)


def _without(stem: str, pattern: re.Pattern[str]) -> str:
    match = pattern.fullmatch(stem)
    return stem if match is None else match["rest"] or match["start"] or ""


def place_of(path: str) -> tuple[str, ...]:
    """Return the folders of a relative path, without those that only mark images or labels."""
    folders = PurePosixPath(path).parent.parts
    return tuple(
        unicodedata.normalize("NFC", folder)
        for folder in folders
        if not is_label_folder(folder) and not is_image_folder(folder)
    )


def part_of(path: str) -> str:
    """Return the part that the innermost such folder of a path names (`imagesTs`, `Testing Set`), else `training`."""
    if path.startswith("/"):  # an absolute path is outside of the searched folder, so its folders say nothing
        return TRAINING
    named = map(_part_named_by, reversed(PurePosixPath(path).parent.parts))
    return next(filter(None, named), TRAINING)


def split_channel(stem: str, channels: tuple[str, ...] | None) -> tuple[str, str] | None:
    """Split the stem of an image into case and channel; `None` if it names no channel.

    Args:
        stem: stem of the file.
        channels: endings that identify a channel (`t1` for `a_t1`); `None` for nnU-Net's four digits.
    """
    if channels is None:
        match = NNUNET_CHANNEL.fullmatch(stem)
        return (match[1], match[2]) if match else None
    for channel in channels:
        match = re.fullmatch(rf"(?:(.+?){SEPARATOR}+)?{re.escape(channel)}", stem, re.IGNORECASE)
        if match:
            return match[1] or "", channel
    return None
