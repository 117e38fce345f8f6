# SPDX-License-Identifier: Apache-2.0
"""Segment an image file without holding the logits of the whole volume in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose
from monai.utils import MetaKeys
from torch import nn

from scripts.data.training_cases import CaseMeasures
from scripts.errors import UserError, root_user_error
from scripts.images.components import classes_to_reduce, keep_largest
from scripts.images.find import ImageFiles, first_file
from scripts.images.monai import ORIENTED, loaded_volume
from scripts.inference.alarms import Alarms, ClassSums, normalised_entropy
from scripts.inference.models import check_model, log_probabilities
from scripts.inference.streaming import BlockResampler, longest_axis, stitched_rows, with_block_spacing


class MirroredNetwork(nn.Module):
    """Average the predictions over an image and its mirror images along each subset of the given axes.

    MONAI's `TestTimeAugmentation` draws random transforms and keeps the whole volume of each in memory. Mirroring needs
    at most 8 views and no interpolation, and is done window by window.

    Args:
        network: maps windows `(B, C, D, H, W)` to logits `(B, K, D, H, W)`.
        axes: axes to mirror, 0, 1, 2 for D, H, W. The network runs once without axes, and 8 times with three axes.
        device: device of the network; windows are moved there, and results are moved back.

    Raises:
        UserError: if an axis is not 0, 1 or 2, or occurs twice.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        axes: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        axes = list(axes) if isinstance(axes, Sequence) and not isinstance(axes, str) else [axes]
        if len(set(axes)) != len(axes) or not all(axis in (0, 1, 2) for axis in axes):
            raise UserError(f"mirror_axes must be different axes out of 0, 1 and 2, e.g. [0, 1], got {axes}.")
        self.network, self.device = network, torch.device(device)
        self.records = getattr(network, "records", {})
        subsets = chain.from_iterable(combinations(axes, size) for size in range(len(axes) + 1))
        self.views = [[axis + 2 for axis in subset] for subset in subsets]

    @torch.no_grad()
    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Logarithms of the mean probabilities, `(B, K, D, H, W)`, float32, on the device of `windows`.

        The softmax of a weighted mean of log-probabilities equals that of the same mean of logits, so windows are
        blended in the same way with and without mirroring.
        """
        images = windows.to(self.device)
        if len(self.views) == 1:
            return self.network(images).float().log_softmax(dim=1).to(windows.device)
        total = torch.zeros((), device=images.device)
        for flipped in self.views:
            logits = self.network(images.flip(flipped) if flipped else images)
            total = total + logits.float().softmax(dim=1).flip(flipped)
        return log_probabilities(total / len(self.views)).to(windows.device)


EMPTY_LOGIT = 10.0
"""Logit of class 0 in windows for which the network is not run; the logits of the other classes are 0."""


class EmptyWindowsSkipped:
    """Assign class 0 to windows in which every channel is constant; run the network on the other windows.

    Args:
        predictor: maps windows `(B, C, D, H, W)` to logits `(B, K, D, H, W)`.
        num_classes: number of classes K.
    """

    def __init__(self, predictor: Callable[[torch.Tensor], torch.Tensor], num_classes: int) -> None:
        self.predictor, self.num_classes = predictor, num_classes

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits `(B, K, D, H, W)`, float32, on the device of `windows`."""
        lowest, highest = windows.flatten(2).aminmax(dim=2)
        filled = (lowest != highest).any(dim=1)
        if bool(filled.all()):
            return self.predictor(windows)
        logits = torch.zeros(len(windows), self.num_classes, *windows.shape[2:], device=windows.device)
        logits[:, 0] = EMPTY_LOGIT
        if bool(filled.any()):
            logits[filled] = self.predictor(windows[filled])
        return logits


@dataclass
class Segmentation:
    """The result for one image, on the grid of its first file with axes `(X, Y, Z)`.

    Attributes:
        image: the file or files of the image, one per channel; for an image in memory, the name of its type.
        affine: `(4, 4)`, voxel index to mm (RAS), from the first file.
        classes: class index of each voxel, uint8, or int16 for more than 256 classes.
        sums: sums over voxels, from which the confidence of the case is computed.
        label_names: names of the classes, background first.
        confidence: probability of each voxel's class, float32, or `None` if not requested.
        uncertainty: normalised entropy in [0, 1], float32, or `None` if not requested.
        probabilities: `(X, Y, Z, K)`, float32, or `None` if not requested; kept in a temporary file while this object
            exists.
        oriented: whether the first file states the directions of its axes.
        dice_factor: ratio of expected Dice to confidence; 1 without a cross-validation (docs/alarms.md).
        alarms: reasons not to trust the result, each a sentence; `None` if the model does not record its training
            cases.
    """

    image: ImageFiles
    affine: np.ndarray
    classes: np.ndarray
    sums: ClassSums
    label_names: tuple[str, ...] = ()
    confidence: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    oriented: bool = True
    dice_factor: float = 1.0
    alarms: list[str] | None = None

    def predicted_dice(self) -> float:
        """The expected Dice in [0, 1], averaged over the structures that were found; 0 if none was found."""
        return min(1.0, self.dice_factor * self.sums.confidence())

    def predicted_dices(self) -> list[float]:
        """The expected Dice of each class, in [0, 1]; 0 for a class without voxels."""
        return [min(1.0, self.dice_factor * value) for value in self.sums.confidences()]


class Segmenter:
    """Preprocess an image, run the network on sliding windows, and resample the result to the grid of the file.

    The result equals that of MONAI's `SlidingWindowInferer`, softmax, `Invertd` and argmax in sequence, but the scores
    of all classes are never in memory for the whole volume: windows are stitched row by row, and each finished row is
    resampled to the grid of the file.

    Boolean arguments may also be the strings `true` and `false`, as MONAI's command line passes them.

    Args:
        preprocessing: maps `{"image": files}` to `{"image": MetaTensor (C, D, H, W)}`, as in training; its first
            transform is `LoadImaged`.
        inferer: inferer whose window, overlap and blending are used.
        predictor: maps windows `(B, C, *window)` to logits `(B, K, *window)`.
        in_channels: number of image channels.
        label_names: names of the K classes, background first.
        largest_component: `True` to keep only the largest connected component of each structure, or names of the
            structures to which this applies.
        confidence: whether results include the volume `confidence`.
        uncertainty: whether results include the volume `uncertainty`.
        probabilities: whether results include the volumes `probabilities`.
        scratch_dir: folder for temporary files of `probabilities`, created if needed; `None` for the system's
            temporary folder.
        skip_empty: whether windows in which every channel is constant get class 0 without running the network.
        alarms: compares the image and its segmentation with the training cases; `None` if they are not known.

    Raises:
        UserError: if `largest_component` has a name that is not a structure of `label_names`.

    Example:
        >>> from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
        >>> import nibabel
        >>> folder = tempfile.TemporaryDirectory()
        >>> scan = f"{folder.name}/scan.nii.gz"
        >>> nibabel.save(nibabel.Nifti1Image(np.eye(6)[..., None].repeat(4, axis=2), np.eye(4)), scan)
        >>> segmenter = Segmenter(
        ...     preprocessing=Compose([LoadImaged("image"), EnsureChannelFirstd("image")]),
        ...     inferer=SlidingWindowInferer((4, 4, 4)),
        ...     predictor=lambda windows: torch.cat([0.5 - windows, windows - 0.5], dim=1),
        ...     in_channels=1,
        ...     label_names=["background", "bright"],
        ... )
        >>> result = segmenter(scan)
        >>> result.classes.shape, int(result.classes.sum())
        ((6, 6, 4), 24)
    """

    def __init__(
        self,
        preprocessing: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        inferer: SlidingWindowInferer,
        predictor: Callable[[torch.Tensor], torch.Tensor],
        in_channels: int,
        label_names: Sequence[str],
        largest_component: bool | str | Sequence[str] = False,
        confidence: bool | str = False,
        uncertainty: bool | str = False,
        probabilities: bool | str = False,
        scratch_dir: str | Path | None = None,
        skip_empty: bool | str = False,
        alarms: Alarms | None = None,
    ) -> None:
        self.preprocessing = with_block_spacing(preprocessing)
        self.in_channels, self.num_classes, self.inferer = in_channels, len(label_names), inferer
        self.label_names = tuple(label_names)
        self.predictor = EmptyWindowsSkipped(predictor, self.num_classes) if _switch(skip_empty) else predictor
        self.reduced = classes_to_reduce(largest_component, label_names)
        self.with_confidence, self.with_uncertainty = _switch(confidence), _switch(uncertainty)
        self.with_probabilities, self.scratch_dir, self.alarms = _switch(probabilities), scratch_dir, alarms

    @classmethod
    def from_bundle(
        cls, bundle_root: str | Path = ".", dataset: str | Path | None = None, **settings: Any
    ) -> Segmenter:
        """Build the segmenter that `configs/inference.yaml` of a bundle describes.

        Args:
            bundle_root: folder that holds `configs/`, in a clone or an unpacked zip file.
            dataset: YAML file of the dataset that the model was trained on. If it is given, the model is
                `outputs/models/model.pt`; otherwise it is the one that comes with the bundle.
            settings: keys of `configs/inference.yaml` and their values, such as `ckpt_dir="models"`, `device="cpu"`,
                `checkpoint=["a.pt", "b.pt"]`, `mirror_axes=[0]`, `largest_component=True`, `save_uncertainty=True`.

        Raises:
            UserError: for a folder without `configs/`, an unknown setting, or a model that is missing or does not fit.

        Example:
            >>> segmenter = Segmenter.from_bundle(".", device="cpu", precision="fp32")
            >>> noise = np.random.default_rng(0).normal(size=(36, 50, 34)).astype("float32")
            >>> result = segmenter.segment(noise, affine=np.diag([1.0, 1.0, 1.0, 1.0]))
            >>> result.classes.shape, result.label_names
            ((36, 50, 34), ('background', 'anterior', 'posterior'))
        """
        root = Path(bundle_root).absolute()
        # A zip file for another dataset describes its model in JSON.
        found = [file for ending in ("json", "yaml") if (file := root / f"configs/inference.{ending}").is_file()]
        if not found:
            raise UserError(f"{root} has no configs/inference.yaml: give the folder of a bundle.")
        if dataset is not None and not Path(dataset).is_file():
            raise UserError(f"The dataset file {dataset} does not exist.")
        parser = ConfigParser()
        parser.read_config([str(file) for file in (found[0], dataset) if file is not None])
        given = {
            "bundle_root": str(root),
            **({"ckpt_dir": str(root / "outputs/models")} if dataset else {}),
            **settings,
        }
        for key, value in given.items():
            if key.split("::")[0] not in parser.get():
                raise UserError(f"{key} is not a setting: the keys of {found[0]} are.")
            parser[key] = str(value) if isinstance(value, Path) else value
        keys = ("segmenter", "predictor", "model_file", "in_channels", "num_classes", "window_size")
        try:
            segmenter, *model = [parser.get_parsed_content(key) for key in keys]
        except Exception as error:  # MONAI wraps errors of the components
            raise root_user_error(error) or error from None
        check_model(*model)
        assert isinstance(segmenter, cls)
        return segmenter

    def segment(self, image: Any, affine: np.ndarray | None = None) -> Segmentation:
        """Segment one image from a file or from memory; the result does not depend on which.

        Args:
            image: path of a file or of a folder of DICOM slices, or a list with a path per channel; a nibabel image; an
                ITK image; or an array `(X, Y, Z)` or `(channels, X, Y, Z)`.
            affine: affine of an array, `(4, 4)`, voxel index to mm (RAS).

        Raises:
            UserError: as `__call__`; for an array without an affine, or another kind of object.
        """
        if isinstance(image, str | Path):
            return self(str(image))
        if isinstance(image, list | tuple) and all(isinstance(each, str | Path) for each in image):
            return self([str(each) for each in image])
        # The first transform reads files.
        return self._segmented(
            Compose(self.preprocessing.transforms[1:]), loaded_volume(image, affine), type(image).__name__
        )

    def __call__(self, image: ImageFiles) -> Segmentation:
        """Segment one image file.

        Args:
            image: the file of the image, or one file per channel.

        Raises:
            UserError: if the image cannot be read, has another number of channels, or has values that are not finite.
        """
        return self._segmented(self.preprocessing, image, image)

    def _segmented(self, preprocessing: Callable, image: Any, name: ImageFiles) -> Segmentation:
        prepared = self._prepared(preprocessing, image, first_file(name))
        result = self._empty(name, prepared.meta)
        measures = None if self.alarms is None else self.alarms.measures(prepared)
        for place, probabilities in self._probabilities(prepared, result, measures):
            highest, classes = probabilities.max(dim=0)
            result.sums.add(probabilities, classes)
            result.classes[place] = classes.numpy()
            if result.confidence is not None:
                result.confidence[place] = highest.numpy()
            if result.uncertainty is not None:
                result.uncertainty[place] = normalised_entropy(probabilities).numpy()
            if result.probabilities is not None:
                result.probabilities[place] = probabilities.movedim(0, -1).numpy()
        keep_largest(result.classes, self.reduced)
        if self.alarms is not None and measures is not None:
            measures.note_written(result.classes, abs(float(np.linalg.det(result.affine[:3, :3]))) / 1000)
            result.dice_factor = self.alarms.dice_factor
            result.alarms = self.alarms.sentences(measures, result.predicted_dice())
        return result

    def _prepared(self, preprocessing: Callable, image: Any, path: str) -> MetaTensor:
        try:
            prepared = preprocessing({"image": image})["image"]
        except Exception as error:  # MONAI wraps errors of its transforms
            mistake = root_user_error(error)
            if mistake is None:
                raise
            raise mistake from error
        if len(prepared) != self.in_channels:
            raise UserError(
                f"{path} has {len(prepared)} channel(s), but the network expects {self.in_channels}: give the channels "
                "that it was trained on, in the same order; a .json list names the files of each image."
            )
        if not bool(torch.isfinite(prepared).all()):
            raise UserError(f"{path} contains NaN or infinite values: replace them, or remove the image.")
        return prepared

    def _probabilities(
        self, prepared: MetaTensor, result: Segmentation, measures: CaseMeasures | None = None
    ) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
        """Yield parts of the file's grid, each as three slices and the probabilities `(K, ...)` there.

        The structures on the network's grid are added to `measures`.
        """
        shape = prepared.shape[1:]
        axis = longest_axis(shape, self.inferer.roi_size)
        to_file = BlockResampler(prepared.affine.numpy(), shape, axis, result.affine, result.classes.shape)
        voxels = prepared.as_subclass(torch.Tensor)
        for start, logits in stitched_rows(voxels, self.inferer, self.predictor, axis):
            if measures is not None:
                measures.add(logits.argmax(dim=0), axis, start)
            yield from to_file.take(start, logits.softmax(dim=0))

    def _empty(self, image: ImageFiles, meta: Mapping[str, Any]) -> Segmentation:
        """Return an empty result. Its arrays have Fortran order, because files are written in that order."""
        shape = tuple(int(side) for side in meta[MetaKeys.SPATIAL_SHAPE])
        probabilities = None
        if self.with_probabilities:
            if self.scratch_dir is not None:
                Path(self.scratch_dir).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.scratch_dir) as file:  # the memory map keeps the deleted file open
                probabilities = np.memmap(file, np.float32, "w+", shape=(*shape, self.num_classes), order="F")
        return Segmentation(
            image,
            np.asarray(meta[MetaKeys.ORIGINAL_AFFINE], dtype=float),
            np.zeros(shape, np.uint8 if self.num_classes <= 256 else np.int16, order="F"),
            ClassSums(self.num_classes),
            self.label_names,
            np.zeros(shape, np.float32, order="F") if self.with_confidence else None,
            np.zeros(shape, np.float32, order="F") if self.with_uncertainty else None,
            probabilities,
            bool(meta.get(ORIENTED, True)),
        )


def _switch(value: Any) -> Any:
    return value == "true" if value in ("true", "false") else value
