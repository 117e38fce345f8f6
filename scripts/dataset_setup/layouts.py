# SPDX-License-Identifier: Apache-2.0
"""Find the cases of a dataset, based on its `dataset.json` or the names of its files and folders.

An image and a label belong together if their names are equal apart from a word such as `_seg`. If the names do not
match, each case must have its own folder.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.data.naming import (
    SEPARATOR,
    TRAINING,
    bids_agreement,
    is_part_folder,
    part_of,
    place_of,
    split_channel,
    stem_of,
    without_image_word,
    without_label_word,
)
from scripts.errors import UserError
from scripts.files import read_json
from scripts.images.header import ending_of


@dataclass(frozen=True)
class Description:
    """Names and values from a `dataset.json`; a field that the file does not give is empty.

    Attributes:
        channel_names: name of each image channel, e.g. `CT`.
        label_names: maps each value in the label files to its name.
        ignore_value: label value of voxels to ignore.
        notes: messages for the user about the folder.
    """

    channel_names: tuple[str, ...] = ()
    label_names: dict[int, str] = field(default_factory=dict)
    ignore_value: int | None = None
    notes: tuple[str, ...] = ()


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a dictionary.

    Raises:
        UserError: if the file cannot be read or does not hold a dictionary.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a dictionary; docs/data.md shows the format.")
    return content


def describe(content: Mapping[str, Any]) -> Description:
    """Read the names of channels and labels.

    The Decathlon format has `modality` and maps label values to names; nnU-Net's format has `channel_names` and maps
    names to values. nnU-Net's regions (several values under one name) are skipped because they overlap. Its label
    `ignore` gives the value to ignore. Unknown formats are skipped.
    """
    channels = content.get("channel_names") or content.get("modality") or {}
    order = sorted(channels, key=lambda key: (_number(key) is None, _number(key) or 0, str(key)))
    names = [str(channels[key]) for key in order] if isinstance(channels, Mapping) else []
    labels: dict[int, str] = {}
    ignore, regions = None, []
    given = content.get("labels")
    if isinstance(given, list) and str(given[:1]).lower() == "['background']":
        given = dict(enumerate(given))
    for key, value in given.items() if isinstance(given, Mapping) else ():
        number, name = (_number(key), value) if _number(key) is not None else (_number(value), key)
        if number is None:
            regions += [str(name)] if isinstance(value, list) else []
        elif str(name).lower() == "ignore":
            ignore = number
        else:
            labels[number] = str(name)
    notes = []
    if regions:
        shown = ", ".join(regions)
        notes.append(f"The regions of dataset.json ({shown}) are not used: classes are single values, without overlap.")
    if given and not isinstance(given, Mapping):
        notes.append(f"The label names of dataset.json ({given}) are not used, because they do not name values.")
    return Description(tuple(names), labels, ignore, tuple(notes))


def _number(text: Any) -> int | None:
    match = re.fullmatch(r"(-?\d+)(?:\.0+)?", str(text).strip())  # "2" and "2.0"
    return int(match[1]) if match else None


COMMAND = "new-dataset"
"""Value of `written_by` in every `dataset.json` that this command writes."""


def read_generated(path: Path) -> dict[str, Any]:
    """Read a `dataset.json` that new_dataset wrote, even if it was edited; return an empty dict for other files."""
    try:
        content = read_mapping(path)
    except UserError:
        return {}
    return content if content.get("written_by") == COMMAND else {}


# ------------------------------------------------------------------ cases


@dataclass(frozen=True)
class FoundCase:
    """Files of one case; paths are relative to the folder that was searched, or absolute.

    Attributes:
        name: unique name of the case.
        images: a file or DICOM folder for each channel, or a single one that holds all channels.
        label: label file; `None` if the case has no label.
        part: `training`, `validation` or `test`, according to folder names or the datalist.
    """

    name: str
    images: tuple[str, ...]
    label: str | None = None
    part: str = TRAINING


@dataclass(frozen=True)
class _Unit:
    """Images of one case whose label is not yet known."""

    stem: str
    place: tuple[str, ...]
    part: str
    images: tuple[str, ...]


def pair(images: Sequence[str], labels: Sequence[str], channels: Sequence[str] | None = None) -> list[FoundCase]:
    """Group files into cases, sorted by name.

    Args:
        images: relative paths.
        labels: relative paths.
        channels: endings of image names, one per channel, in channel order; images with other endings are left out.
            With `None`, the endings `_0000`, `_0001` (nnU-Net) mark channels, and several images in the folder of one
            case are channels.

    Raises:
        UserError: for ambiguous names, a label without an image, or cases with different channels.
    """
    try:
        cases = _pair_by_name(images, labels, channels)
    except UserError:
        by_folder = _pair_by_folder(images, labels, channels)
        if by_folder is None:
            _refuse_masks_of_structures(images, labels)
            raise
        cases = by_folder
    return sorted(_with_unique_names(cases), key=lambda case: (case.name, case.images))


# ------------------------------------------------------------------ by name


def _pair_by_name(images: Sequence[str], labels: Sequence[str], channels: Sequence[str] | None) -> list[FoundCase]:
    units = _units(images, labels, channels)
    by_stem, by_bare = defaultdict(list), defaultdict(list)
    for unit in units:
        by_stem[unit.stem].append(unit)
        by_bare[without_image_word(unit.stem)].append(unit)
    pairs: list[tuple[str, _Unit]] = []
    alone, hints = [], []
    for label in labels:
        stem = stem_of(label)
        bare = without_label_word(stem)
        steps = (by_stem.get(stem), by_stem.get(bare), by_bare.get(bare) if bare else None)
        candidates = next(filter(None, steps), None) or _by_entities(stem, units)
        if candidates:
            pairs.append((label, _nearest(label, candidates)))
        else:
            alone.append(label)
    # Where names repeat, an image of the same name in a folder that has pairs of its own is another case.
    sites: set[tuple[str, ...]] = set()
    if any(len(same) > 1 for same in by_stem.values()):
        sites = {unit.place[:depth] for label, unit in pairs for depth in range(1, _depth_of_fork(label, unit) + 1)}
    label_of: dict[_Unit, str] = {}
    for label, unit in pairs:
        if sites & _forking_folders(label, unit):
            alone.append(label)
            hints.append(f"{unit.images[0]}, of the same name, is at another site. ")
            continue
        if unit in label_of:
            raise UserError(
                f"{label_of[unit]} and {label} are both labels of {unit.images[0]}: keep one, or give the folder of "
                "labels with --labels."
            )
        label_of[unit] = label
    if alone:
        which = f"The label {alone[0]} has" if len(alone) == 1 else f"The labels {', '.join(alone)} have"
        raise UserError(
            f"{which} no matching image. {''.join(hints[:1])}Give a label the name of its image, with or without _seg "
            "or _label, list the endings of the channels with --channels, or leave labels out with --exclude."
        )
    return [FoundCase(unit.stem, unit.images, label_of.get(unit), unit.part) for unit in units]


def _depth_of_fork(label: str, unit: _Unit) -> int:
    """Return the number of folders that the places of a label and an image share."""
    return sum(itertools.accumulate((a == b for a, b in zip(place_of(label), unit.place, strict=False)), min))


def _forking_folders(label: str, unit: _Unit) -> set[tuple[str, ...]]:
    """Return the two folders in which the paths of a label and an image part; none if one path leads to the other."""
    place, depth = place_of(label), _depth_of_fork(label, unit)
    if depth in (len(place), len(unit.place)):
        return set()
    return {place[: depth + 1], unit.place[: depth + 1]}


def _by_entities(label: str, units: Sequence[_Unit]) -> list[_Unit]:
    """Return the images that share the most entities with a label that has a BIDS name."""
    shared = {unit: bids_agreement(label, unit.stem) for unit in units}
    most = max(shared.values(), default=0)
    return [unit for unit, count in shared.items() if count == most > 0]


def _refuse_masks_of_structures(images: Sequence[str], labels: Sequence[str]) -> None:
    """Raise a specific error if each case has one label file per structure (TotalSegmentator).

    The name of the structure can be the name of the file in the folder of the case, the name of a folder
    (`masks/liver/c1.nii.gz`), or the part of the file name after the name of the case (`c1_liver.nii.gz`).
    """
    stems, places = {stem_of(image) for image in images}, {place_of(image) for image in images}
    cases_of: dict[str, set[str]] = defaultdict(set)
    for label in labels:
        stem, place = stem_of(label), place_of(label)
        ends = [match.start() for match in re.finditer(SEPARATOR, stem) if stem[: match.start()] in stems]
        if stem in stems and place in places:
            continue  # beside the images of a site
        if stem in stems and place:
            cases_of[place[-1]].add(stem)
        elif ends:
            cases_of[stem[ends[-1] + 1 :]].add(stem[: ends[-1]])
        else:
            cases_of[stem].add("/".join(place))
    structures = sorted(structure for structure, cases in cases_of.items() if len(cases) > 1)
    several = sum(map(len, cases_of.values())) > len(set().union(*cases_of.values()))
    if len(structures) > 1 and several:
        more = f" and {len(structures) - 5} more" if len(structures) > 5 else ""
        raise UserError(
            f"Each case has a label file per structure ({', '.join(structures[:5])}{more}), as in {labels[0]}: write "
            f"one label file per case, in which each structure has a value of its own ({structures[0]} 1, "
            f"{structures[1]} 2, ...), and leave the single files out with --exclude."
        )


def _nearest(label: str, candidates: list[_Unit]) -> _Unit:
    """Return the candidate nearest to the label: same place and part, else same place, else same part, else any.

    Args:
        label: path of the label.
        candidates: at least one.
    """
    place, part = place_of(label), part_of(label)
    for near in (
        [u for u in candidates if u.place == place and u.part == part],
        [u for u in candidates if u.place == place],
        [u for u in candidates if u.part == part],
        candidates,
    ):
        if len(near) > 1:
            raise UserError(
                f"The label {label} matches both {near[0].images[0]} and {near[1].images[0]}: give each case a "
                "unique name, list the endings of the channels of one image with --channels, or leave images out with "
                "--exclude."
            )
        if near:
            break
    return near[0]


def _units(images: Sequence[str], labels: Sequence[str], channels: Sequence[str] | None) -> list[_Unit]:
    split = _channel_splits(images, labels, channels)
    grouped: dict[tuple[str, tuple[str, ...], str], dict[str, str]] = defaultdict(dict)
    for image, (stem, channel) in split.items():
        unit = grouped[part_of(image), place_of(image), stem]
        if channel in unit:
            raise UserError(f"{unit[channel]} and {image} have the same name: keep one, or rename one of them.")
        unit[channel] = image
    _check_channels({f"{stem} ({next(iter(unit.values()))})": unit for (_, _, stem), unit in grouped.items()})
    order = list(channels) if channels else sorted({channel for _, channel in split.values()})
    return [
        _Unit(stem, place, part, tuple(unit[channel] for channel in order if channel in unit))
        for (part, place, stem), unit in grouped.items()
    ]


def _channel_splits(
    images: Sequence[str], labels: Sequence[str], channels: Sequence[str] | None
) -> dict[str, tuple[str, str]]:
    """Split the stem of each image into case and channel.

    Without `channels`, nnU-Net's digits count as channels only if no label has the full stem of an image.
    """
    stems = {image: stem_of(image) for image in images}
    wanted = tuple(channels) if channels else None
    parts = {image: split_channel(stem, wanted) for image, stem in stems.items()}
    if channels:
        return {image: part for image, part in parts.items() if part is not None}
    label_stems = {stem_of(label) for label in labels} | {without_label_word(stem_of(label)) for label in labels}
    if all(parts.values()) and not label_stems & set(stems.values()):
        return {image: part for image, part in parts.items() if part is not None}
    return {image: (stem, "") for image, stem in stems.items()}


def _check_channels(cases: dict[str, Iterable[str]]) -> None:
    """Check that all cases have the same channels; the channels of most cases count as correct."""
    if not cases:
        return
    counts = Counter(tuple(sorted(channels)) for channels in cases.values())
    usual = counts.most_common(1)[0][0]
    for name, channels in cases.items():
        if tuple(sorted(channels)) != usual:
            raise UserError(
                f"Case {name} has the channels {', '.join(sorted(channels)) or '-'}, but other cases have "
                f"{', '.join(usual)}: add or remove files so that all cases agree, leave files out with --exclude, "
                "or select with --channels."
            )


# ------------------------------------------------------------------ by folder


def _pair_by_folder(
    images: Sequence[str], labels: Sequence[str], channels: Sequence[str] | None
) -> list[FoundCase] | None:
    """Pair by folder, one per case; `None` unless each label is alone in its folder, all at the same depth."""
    places = [place_of(label) for label in labels]
    depth = len(places[0]) if places else 0
    if depth == 0 or len(set(places)) < len(places) or any(len(place) != depth for place in places):
        return None
    where = {image: place_of(image if ending_of(image) else f"{image}/slice") for image in images}
    if any(len(place) < depth for place in where.values()) or any(is_part_folder(p[-1]) for p in places):
        return None
    inside: dict[tuple[str, ...], list[str]] = {place: [] for place in places}
    for image, place in where.items():  # absolute paths are outside of the searched folder
        inside.setdefault(place[: None if image.startswith("/") else depth], []).append(image)
    empty = [label for label, place in zip(labels, places, strict=True) if not inside[place]]
    if empty:
        raise UserError(f"No image is in the folder of {', '.join(empty)}: add an image or remove the label.")
    named = {place: _channels_in_folder(files, channels) for place, files in inside.items()}
    if channels or any(len(files) > 1 for files in named.values()):
        _check_channels({"/".join(place): files for place, files in named.items()})
    label_of = dict(zip(places, labels, strict=True))
    cases = []
    for place, files in named.items():
        ordered = tuple(files[channel] for channel in (channels or sorted(files)))
        cases.append(FoundCase(place[-1], ordered, label_of.get(place), part_of(ordered[0])))
    return cases


def _channels_in_folder(files: Sequence[str], channels: Sequence[str] | None) -> dict[str, str]:
    """Map channels to files. A channel is the part of the stem in which the files differ: `t1` in `BraTS_001_t1`."""
    stems = [stem_of(file) for file in files]
    if channels:
        parts = [split_channel(stem, tuple(channels)) for stem in stems]
        return {part[1]: file for part, file in zip(parts, files, strict=True) if part is not None}
    words = [re.split(rf"(?<={SEPARATOR})", stem) for stem in stems]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    cut = sum(len(column[0]) for column in same) if len(stems) > 1 else 0
    found: dict[str, str] = {}
    for stem, file in zip(stems, files, strict=True):
        if stem[cut:] in found:
            raise UserError(f"{found[stem[cut:]]} and {file} have the same name: keep one, or rename one of them.")
        found[stem[cut:]] = file
    return found


def _with_unique_names(cases: Sequence[FoundCase]) -> list[FoundCase]:
    """Make case names unique: replace shared names by the folder's name, or add the folder or a number to them."""
    named = Counter(case.name for case in cases)
    held = Counter(place_of(case.images[0]) for case in cases)
    taken: set[str] = set()
    unique = []
    for case in cases:
        place = place_of(case.images[0])
        name = case.name
        if named[name] > 1 and place:
            name = "_".join(part for part in (*place, *([] if held[place] == 1 else [name])) if part != "/")
        if name in taken:
            name = next(f"{name}_{n}" for n in itertools.count(2) if f"{name}_{n}" not in taken)
        taken.add(name)
        unique.append(replace(case, name=name))
    return unique
