# SPDX-License-Identifier: Apache-2.0
"""Keep resampled volumes between visits: in memory, or on disk where memory has no room for them."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import psutil
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose
from monai.utils import convert_to_tensor

from scripts.data.checks.labels import absent_classes
from scripts.data.labels import Tally
from scripts.data.spec import Case, DatasetSpec, images_of, with_name
from scripts.distributed.collectives import is_rank0, num_local_ranks
from scripts.distributed.threads import one_thread
from scripts.errors import UserError
from scripts.files import save_atomically
from scripts.images.dicom_slices import split_series
from scripts.images.header import PAIR, resampled_shape
from scripts.images.read import read_header
from scripts.progress import open_bar

logger = logging.getLogger("cache")

MEMORY_SHARE = 0.75
"""Fraction of the free memory that volumes may take with `auto`; a step needs the rest."""

FLOAT32, INT8 = 4, 1  # bytes

SOURCES = ("data", "images")
"""Folders of `scripts` whose code decides what a cached volume holds."""


class VolumeCache:
    """Where the resampled volumes of a run's datasets are kept between visits.

    Args:
        cache: `memory`, `disk`, or `auto`: a dataset is kept in memory as long as all of them together take at most
            `MEMORY_SHARE` of what is free at the start.
        directory: folder of the files on disk.
        dataset: the dataset block.
    """

    def __init__(self, cache: str, directory: str | Path, dataset: DatasetSpec) -> None:
        self.cache = cache
        self.directory = directory
        self.dataset = dataset
        self.free = psutil.virtual_memory().available * (1.0 if cache == "memory" else MEMORY_SHARE)

    def takes_memory(self, cases: Sequence[Case]) -> bool:
        """Choose where the volumes of `cases` are kept, log disk or over 1 GiB, and count the memory as taken.

        Every process of a run keeps all of them in its memory; on disk they share them.

        Raises:
            UserError: if `memory` is chosen and they do not fit.
        """
        need = num_local_ranks() * sum(_case_bytes(case, self.dataset) for case in cases)
        volumes = f"{len(cases)} resampled cases ({_gib(need)})"
        if self.cache == "memory" and need > self.free:
            raise UserError(
                f"{volumes} do not fit into the {_gib(self.free)} of memory that are left: give --cache disk."
            )
        in_memory = self.cache != "disk" and need <= self.free
        self.free -= need if in_memory else 0
        if cases and is_rank0() and (need > 2**30 or not in_memory):
            logger.info(f"{volumes} are kept {'in memory' if in_memory else f'in {self.directory}'}.")
        return in_memory


def cached_dataset(data: Sequence[Case], transform: Compose, cache: VolumeCache) -> Dataset:
    """A dataset that computes the transforms in front of the first random one once.

    Random transforms must not write into their input: they receive the cached volumes themselves, not copies.

    Args:
        data: the cases.
        transform: of an item.
        cache: chooses where the volumes are kept.
    """
    if cache.takes_memory(data):
        with one_thread():
            dataset = MemoryCacheDataset(data, transform, copy_cache=False)
        if is_rank0():
            _name_absent_classes([prepared_item(dataset, index) for index in range(len(dataset))], cache.dataset)
        return dataset
    return DiskCacheDataset(data, transform, cache.directory, cache.dataset)


def prepared_item(dataset: CacheDataset | PersistentDataset, index: int) -> Mapping[str, Any]:
    """A case after its deterministic transforms, from the cache."""
    if isinstance(dataset, CacheDataset):
        return dataset._cache[index]
    return dataset._cachecheck(dataset.data[index])


def _name_absent_classes(prepared: Sequence[Mapping[str, Any]], dataset: DatasetSpec) -> None:
    """Warn about classes that no labelled case holds, where the prepared items list the voxels of each class."""
    key = "label_cls_indices"  # of MONAI's `ClassesToIndicesd`
    items = [item[key] for item in prepared if isinstance(item, Mapping) and key in item]
    counts = Counter({value: sum(len(item[c]) for item in items) for c, value in enumerate(dataset.values)})
    if items:
        for finding in absent_classes([Tally(whole=+counts)], dataset):
            logger.warning(finding.sentence)


class MemoryCacheDataset(CacheDataset):
    """MONAI's `CacheDataset` that computes the volumes in the calling thread.

    MONAI uses a pool of one thread. After an error that thread goes on with the other cases while Python ends, which
    then often aborts ("terminate called without an active exception", exit code 134).
    """

    def _fill_cache(self, indices: Sequence[int] = ()) -> list:
        # Closed in case of an error too: an open bar would be drawn again below the error's sentence.
        with open_bar(indices, desc="loading cases", disable=not indices, leave=False) as bar:
            return [self._load_cache_item(index) for index in bar]


class DiskCacheDataset(PersistentDataset):
    """MONAI's `PersistentDataset` with files that several runs may share, and of which a visit reads only a part.

    A case's volumes are computed at the first visit. The name of their file is a hash of the case, of size and time of
    its files, of the transforms, and of the code that reads and transforms. So whatever changes leads to a new file; an
    old one is never read again and may be deleted. MONAI moves a file in from another folder, which is not atomic, and
    loads it whole. Here it is renamed into place and mapped, so that cropping reads the pages of a patch.

    The process that writes the last file of the labelled cases warns about classes that none of them holds; if all
    files are there at the start, the first process does.

    Args:
        data: the cases.
        transform: of an item; what it makes of the deterministic part must be tensors, texts, numbers, lists of them.
        cache_dir: folder of the files, which is created.
        dataset: declares the classes; `None`: no warning.

    Raises:
        UserError: if a transform cannot be hashed.
    """

    def __init__(
        self,
        data: Sequence[Case],
        transform: Compose,
        cache_dir: str | Path,
        dataset: DatasetSpec | None = None,
    ) -> None:
        super().__init__(data, transform, cache_dir, hash_func=_fingerprint)
        self._known_files: dict[str, Path] = {}
        self.dataset = dataset
        try:
            self.set_transform_hash(pickle_hashing)
        except (AttributeError, TypeError, UnpicklingError) as error:
            raise UserError(
                f"A deterministic transform cannot be hashed for cache: disk ({error}): give --cache memory."
            ) from error
        if is_rank0():
            self._warn_if_filled()

    def _warn_if_filled(self) -> None:
        labelled = [case for case in self.data if "label" in case]
        if self.dataset is not None and labelled and all(self._file_of(case).exists() for case in labelled):
            _name_absent_classes([self._cachecheck(case) for case in labelled], self.dataset)

    def _cachecheck(self, item_transformed: Case) -> Any:
        file = self._file_of(item_transformed)
        try:
            return _mapped(file)
        except FileNotFoundError:
            pass
        except (OSError, RuntimeError, UnpicklingError, EOFError):
            logger.warning(f"{file} is damaged and is computed anew.")
        with one_thread():
            item = self._pre_transform(deepcopy(item_transformed))
        item = with_name(item)  # before the metadata goes
        save_atomically(convert_to_tensor(item, track_meta=False, convert_numeric=False), file)
        if "label" in item_transformed:
            self._warn_if_filled()
        return _mapped(file)

    def _file_of(self, case: Case) -> Path:
        """The file of a case, found once per process: hashing looks at each slice of a DICOM folder."""
        key = repr(case)
        if key not in self._known_files:
            name = hashlib.sha256(self.hash_func(case) + self.transform_hash.encode()).hexdigest()
            self._known_files[key] = Path(self.cache_dir or "") / f"{name}.pt"
        return self._known_files[key]


def _mapped(file: Path) -> Any:
    return torch.load(file, weights_only=True, mmap=True)


def _fingerprint(case: Mapping[str, Any]) -> bytes:
    """Hash a case, size and time of its files, and the code."""
    paths = [Path(path) for path in [*images_of(dict(case)), *([case["label"]] if "label" in case else [])]]
    stats = [(str(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for path in paths for file in _files(path)]
    return pickle_hashing([dict(case), stats, _code()])


def _files(path: Path) -> list[Path]:
    """The files of a volume: a folder's slices, of which a series may be named, a header's detached data."""
    path = Path(split_series(path)[0])
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    apart = path.suffix.lower() in (".nhdr", ".mhd", *PAIR)
    return sorted(file for file in path.parent.iterdir() if file.stem == path.stem) if apart else [path]


@lru_cache
def _code() -> str:
    files = sorted(file for folder in SOURCES for file in Path(__file__).parents[1].joinpath(folder).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _case_bytes(case: Case, dataset: DatasetSpec) -> int:
    header = read_header(images_of(case)[0]).in_ras()
    shape = resampled_shape(header.shape, header.spacing, dataset.spacing)
    return resampled_bytes(shape, dataset.in_channels, "label" in case)


def resampled_bytes(shape: Sequence[int], channels: int, with_label: bool) -> int:
    """Return the bytes of a cached training case: a float32 image and an 8-bit label.

    Args:
        shape: shape of the resampled image, from `resampled_shape`.
        channels: number of image channels.
        with_label: whether the label is cached too.
    """
    return math.prod(shape) * (FLOAT32 * channels + (INT8 if with_label else 0))


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
