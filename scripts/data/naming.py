# SPDX-License-Identifier: Apache-2.0
"""Derive the case, its part of the dataset, the channel and the patient from the names of files and folders."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from scripts.errors import UserError
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
}

PART_FOLDERS = frozenset(PART_WORDS) | {"tr", "train", "training", "labelled", "labeled", "unlabelled", "unlabeled"}
"""Names of folders that contain many cases, never only one."""

SEPARATOR = r"[ _.\-]"
_PART = rf"(tr|train|training|{'|'.join(PART_WORDS)})"


def _image_folder_pattern() -> re.Pattern[str]:
    """Match a word, also before a part: `imagesTr`, `imagesTs_old`. Behind a mere word (`scan_7`) it may be a case."""
    return re.compile(rf"(?:{'|'.join(IMAGE_WORDS)}){SEPARATOR}?(?:{_PART}\d*(?:{SEPARATOR}.*)?)?", re.IGNORECASE)


def _label_folder_pattern() -> re.Pattern[str]:
    """Match names that begin or end with a word: `labelsTr`, `labels_old`, `labels2`, `expert_labels`.

    Not those that deny it (`no_labels`), name both (`images_and_masks`) or number a case (`mask_7`).
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
    """Return the file name without its image ending, but with `.seg`, in NFC, for accented letters to compare equal."""
    mark = ".seg" if ending_of(path) in SLICER else ""  # the ending of a label file says that it is one
    return unicodedata.normalize("NFC", case_name(path) + mark)


def is_label_folder(name: str) -> bool:
    """Whether a folder's name marks labels: `labels`, `labelsTr`, `labels_old`, `expert_masks`, ..."""
    return _LABEL_FOLDER.fullmatch(name) is not None


def is_image_folder(name: str) -> bool:
    """Whether a folder's name marks images: `images`, `imagesTs`, `scans`, ..."""
    return _IMAGE_FOLDER.fullmatch(name) is not None


def is_label_stem(stem: str) -> bool:
    """Whether a file's stem marks a label: `a_seg`, `a-label`, `segmentation`, `mask_007`, `sub-1_seg-vert_msk`, ..."""
    bids = bids_parts(stem)
    return _LABEL_FILE.fullmatch(stem) is not None or (bids is not None and bool(bids[1] & BIDS_LABELS))


BIDS_LABELS = {"dseg", "probseg", "mask", "msk", "seg"}
"""Suffixes of label files in BIDS, and in VerSe, which follows it."""


def bids_parts(stem: str) -> tuple[dict[str, str], set[str]] | None:
    """Entities and suffixes of a name in the form of BIDS; `None` for other names.

    >>> bids_parts("sub-01_ses-2_T1w")
    ({'sub': '01', 'ses': '2'}, {'T1w'})
    """
    if not re.match(r"sub-[^_-]+(_|$)", stem):
        return None
    parts = stem.split("_")
    return dict(part.split("-", 1) for part in parts if "-" in part), {part for part in parts if "-" not in part}


def bids_agreement(label: str, image: str) -> int:
    """Number of entities that two stems in the form of BIDS share; 0 if they cannot be of one image.

    Entities of both must agree, and an image must have the suffix that a label names beside its own (`T1w` of
    `sub-01_T1w_label-lesion_dseg`).
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
        label_folder: the folder of labels, relative to the same folder; only files in it are labels. By default, files
            in folders with names such as `labels` or `masks` are labels, and so are files outside of folders of
            images whose own name contains such a word. Those outside of a given `label_folder` are neither, unless
            nothing else is an image.
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
    """Return `test` or `validation` if a folder of the path marks it (`imagesTs`, `test`, `val`), else `training`."""
    if path.startswith("/"):  # absolute paths are outside of the searched folder, so its parts do not apply
        return TRAINING
    for folder in reversed(PurePosixPath(path).parent.parts):
        match = _LABEL_FOLDER.fullmatch(folder) or _IMAGE_FOLDER.fullmatch(folder)
        word = (match[1] or "") if match else folder
        if word.lower() in PART_WORDS:
            return PART_WORDS[word.lower()]
    return TRAINING


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


MOST_CASES = 4  # of a patient, unless there are more patients than that
FEWEST_PATIENTS = 3  # fewer groups are rather sites or years


def guess_patients(cases: Sequence[tuple[str, str]]) -> tuple[dict[str, str], str]:
    """Group cases into patients.

    Cases are of one patient if they share, in this order: a BIDS subject (`sub-01`); a folder; the beginning of a name
    up to a separator, if it has a digit (`patient001_frame01`); the leading digits of a number whose last one or two
    digits count from 0 or 1 for each patient (`study_0300`, `study_0301`). What does not give several patients with few
    cases each, but sites or plain numbers, is not used.

    Args:
        cases: name and image file of each case; names are unique.

    Returns:
        The patient of each case by name, empty if every case is taken for a patient; and a sentence that says so.

    Example:
        >>> guess_patients([(f"p{n}_{v}", f"p{n}_{v}.nii") for n in range(3) for v in "ab"])[0]["p2_b"]
        'p2'
        >>> guess_patients([(f"case_{n}", f"case_{n}.nii") for n in range(6)])
        ({}, '')
    """
    names = [name for name, _ in cases]
    for what, keys in _candidates(cases):
        sizes = Counter(keys)
        if len(sizes) >= FEWEST_PATIENTS and 1 < max(sizes.values()) <= max(MOST_CASES, len(sizes)):
            first = next(key for key in keys if sizes[key] > 1)
            together = [name for name, key in zip(names, keys, strict=True) if key == first]
            sentence = (
                f"The {len(names)} cases are taken for {len(sizes)} patients because they share {what} "
                f"({', '.join(together)}). All cases of a patient stay on one side of a split; a patient_pattern of "
                "your own changes that ('.*': every case is a patient)."
            )
            return dict(zip(names, keys, strict=True)), sentence
    return {}, ""


def _candidates(cases: Sequence[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Yield what cases may share, and the key of each case; a case without that is alone."""
    names = [name for name, _ in cases]
    subjects = [re.search(r"(?<![a-z0-9])sub-[a-z0-9]+", path, re.IGNORECASE) for _, path in cases]
    if all(subjects):
        yield "a BIDS subject", [found[0] for found in subjects if found]
    places = _places([path for _, path in cases])
    for depth in range(1, max(map(len, places), default=0) + 1):
        pairs = zip(names, places, strict=True)
        yield "a folder", ["/".join(place[:depth]) if len(place) >= depth else name for name, place in pairs]
    words = [re.split(rf"(?<={SEPARATOR})", name) for name in names]
    for count in range(1, max(map(len, words), default=0)):
        starts = ["".join(each[:count]) if len(each) > count else "" for each in words]
        keys = [re.sub(rf"{SEPARATOR}+$", "", start) if re.search(r"\d", start) else "" for start in starts]
        yield "the beginning of their names", [key or name for key, name in zip(keys, names, strict=True)]
    for digits in (2, 1):
        if _count_visits(names, digits):
            yield "the beginning of their numbers", [name[:-digits] for name in names]


def _places(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """The folders of each file below those that all share, without folders of images, labels or parts."""
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath(folders) if folders else ""
    return [tuple(filter(_may_be_a_patient, os.path.relpath(folder, root).split(os.sep))) for folder in folders]


def _may_be_a_patient(folder: str) -> bool:
    return folder.lower() not in {".", *PART_FOLDERS} and not is_image_folder(folder) and not is_label_folder(folder)


def _count_visits(names: Sequence[str], digits: int) -> bool:
    """Whether the last digits of all names count from 0 or 1 for each beginning, and never reach their end."""
    if not all(re.fullmatch(r".*\d{3,}", name) for name in names):
        return False
    visits = defaultdict(list)
    for name in names:
        visits[name[:-digits]].append(int(name[-digits:]))
    return all(
        sorted(found) in (list(range(len(found))), list(range(1, len(found) + 1))) and len(found) < 10**digits
        for found in visits.values()
    )


def patient_of(name: str, pattern: str | Mapping[str, str] | None) -> str:
    """The patient of a case.

    Args:
        name: name of the case.
        pattern: regular expression that finds the patient in the name, or the patients by name (`guess_patients`). The
            whole name is the patient if there is no pattern or no match.

    Raises:
        UserError: for an invalid regular expression.
    """
    if not isinstance(pattern, str):
        return name if pattern is None else pattern.get(name, name)
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise UserError(f"--patient_pattern {pattern!r} is not a valid regular expression: {error}.") from error
    return found[0] if found else name


def patients_of(cases: Sequence[tuple[str, str]], pattern: str | None) -> tuple[dict[str, str], str]:
    """The patient of each case by name, from a pattern or guessed; and a sentence about the guess, empty without one.

    Args:
        cases: name and image file of each case; names are unique.
        pattern: see `patient_of`; `None`: patients are guessed.

    Raises:
        UserError: for an invalid regular expression.
    """
    found, sentence = guess_patients(cases) if pattern is None else (pattern, "")
    return {name: patient_of(name, found) for name, _ in cases}, sentence
