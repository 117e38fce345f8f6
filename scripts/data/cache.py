# SPDX-License-Identifier: Apache-2.0
"""Cache resampled volumes in memory, or on disk if they do not fit in memory."""

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
from scripts.images.header import resampled_shape
from scripts.images.read import parts_of, read_header
from scripts.progress import open_bar

logger = logging.getLogger("cache")

MEMORY_SHARE = 0.75
"""Fraction of the free memory that cached volumes may use with `auto`; training steps need the rest."""

FLOAT32, INT8 = 4, 1  # bytes

SOURCES = ("data", "images")
"""Folders of `scripts` whose code determines the content of a cached volume."""


class VolumeCache:
    """Decide where the resampled volumes of a run's datasets are cached.

    Args:
        cache: `memory`, `disk` or `auto`. With `auto` a dataset is cached in memory if all datasets so far together use
            at most `MEMORY_SHARE` of the memory that is free at the start.
        directory: folder of the files on disk.
        dataset: the dataset block.
    """

    def __init__(self, cache: str, directory: str | Path, dataset: DatasetSpec) -> None:
        self.cache = cache
        self.directory = directory
        self.dataset = dataset
        self.free = psutil.virtual_memory().available * (1.0 if cache == "memory" else MEMORY_SHARE)

    def takes_memory(self, cases: Sequence[Case]) -> bool:
        """Decide whether the volumes of `cases` are cached in memory, and if so, reserve the memory.

        The decision is logged if it is disk, or more than 1 GiB of memory. Each process of a run caches all volumes in
        its own memory; on disk, all processes share one copy.

        Raises:
            UserError: if `memory` is chosen and the volumes do not fit.
        """
        need = num_local_ranks() * sum(_case_bytes(case, self.dataset) for case in cases)
        volumes = f"{len(cases)} resampled cases ({_gib(need)})"
        if self.cache == "memory" and need > self.free:
            raise UserError(f"{volumes} do not fit into the {_gib(self.free)} of free memory: use --cache disk.")
        in_memory = self.cache != "disk" and need <= self.free
        self.free -= need if in_memory else 0
        if cases and is_rank0() and (need > 2**30 or not in_memory):
            logger.info(f"{volumes} are kept {'in memory' if in_memory else f'in {self.directory}'}.")
        return in_memory


def cached_dataset(data: Sequence[Case], transform: Compose, cache: VolumeCache) -> Dataset:
    """Return a dataset that caches the result of the transforms before the first random one.

    Random transforms must not write to their input, because they receive the cached volumes and not copies of them.

    Args:
        data: the cases.
        transform: the transforms of an item. A `Compose` among them is replaced by its transforms, because MONAI takes
            any `Compose` for a random transform.
        cache: decides where the volumes are cached.
    """
    transform = transform.flatten()
    if cache.takes_memory(data):
        with one_thread():
            dataset = MemoryCacheDataset(data, transform, copy_cache=False)
        if is_rank0():
            _name_absent_classes([prepared_item(dataset, index) for index in range(len(dataset))], cache.dataset)
        return dataset
    return DiskCacheDataset(data, transform, cache.directory, cache.dataset)


def prepared_item(dataset: CacheDataset | PersistentDataset, index: int) -> Mapping[str, Any]:
    """Return a case after its deterministic transforms, from the cache."""
    if isinstance(dataset, CacheDataset):
        return dataset._cache[index]
    return dataset._cachecheck(dataset.data[index])


def _name_absent_classes(prepared: Sequence[Mapping[str, Any]], dataset: DatasetSpec) -> None:
    """Warn about classes that no labelled case has, provided that the items list the voxels of each class."""
    key = "label_cls_indices"  # set by MONAI's `ClassesToIndicesd`
    items = [item[key] for item in prepared if isinstance(item, Mapping) and key in item]
    counts = Counter({value: sum(len(item[c]) for item in items) for c, value in enumerate(dataset.values)})
    if items:
        for finding in absent_classes([Tally(whole=+counts)], dataset):
            logger.warning(finding.sentence)


class MemoryCacheDataset(CacheDataset):
    """MONAI's `CacheDataset`, but the volumes are computed in the calling thread.

    MONAI uses a pool of one thread. After an error, that thread continues with the other cases while Python shuts down,
    and the process then often aborts ("terminate called without an active exception", exit code 134).
    """

    def _fill_cache(self, indices: Sequence[int] = ()) -> list:
        # The context closes the bar after an error too; an open bar would be drawn again below the error message.
        with open_bar(indices, desc="loading cases", disable=not indices, leave=False) as bar:
            return [self._load_cache_item(index) for index in bar]


class DiskCacheDataset(PersistentDataset):
    """MONAI's `PersistentDataset`, but several runs can share its files, and files are memory-mapped.

    The volumes of a case are computed when the case is first used. The name of its file is a hash of the case, the size
    and time of its image files, the transforms, and the code that reads and transforms. Any change therefore leads to a
    new file; an old file is never read again and may be deleted.

    MONAI moves a new file from another folder, which is not atomic, and loads whole files. Here the file is written
    atomically by renaming it, and is memory-mapped, so that cropping reads only the pages of a patch.

    The process that writes the last file of the labelled cases warns about classes that no labelled case has. If all
    files exist at the start, the first process warns.

    Args:
        data: the cases.
        transform: the transforms of an item. The result of the deterministic ones must consist of tensors, strings,
            numbers, and lists of these.
        cache_dir: folder of the files, which is created.
        dataset: declares the classes; with `None` there is no warning.

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
            logger.warning(f"{file} is damaged and is computed again.")
        with one_thread():
            item = self._pre_transform(deepcopy(item_transformed))
        item = with_name(item)  # first, because plain tensors lose the metadata
        save_atomically(convert_to_tensor(item, track_meta=False, convert_numeric=False), file)
        if "label" in item_transformed:
            self._warn_if_filled()
        return _mapped(file)

    def _file_of(self, case: Case) -> Path:
        """Return the file of a case; remembered, because hashing looks at each slice of a DICOM folder."""
        key = repr(case)
        if key not in self._known_files:
            name = hashlib.sha256(self.hash_func(case) + self.transform_hash.encode()).hexdigest()
            self._known_files[key] = Path(self.cache_dir or "") / f"{name}.pt"
        return self._known_files[key]


def _mapped(file: Path) -> Any:
    return torch.load(file, weights_only=True, mmap=True)


def _fingerprint(case: Mapping[str, Any]) -> bytes:
    """Hash a case, its files, and the code.

    A file is known by its target, if it is a link, its size, and the times of its last changes. The time of the last
    change of its entry (`st_ctime`) also tells a file that was replaced by another one with the old time.
    """
    paths = [Path(path) for path in [*images_of(dict(case)), *([case["label"]] if "label" in case else [])]]
    files = [(os.path.realpath(file), os.stat(file)) for path in paths for file in _files(path)]
    stats = [(target, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for target, stat in files]
    return pickle_hashing([dict(case), stats, _code()])


def _files(path: Path) -> list[Path]:
    """List the files of a volume: the slices of a folder (or of one series in it), or a header and its data file."""
    path = Path(split_series(path)[0])
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path, *(path.parent / part for part in parts_of(path))]


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
