# SPDX-License-Identifier: Apache-2.0
"""Connected components of a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from scipy import ndimage

from scripts.errors import UserError


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected component of a mask; among components of equal size, the first in memory order.

    Voxels that share a face, an edge or a corner are connected (26-connectivity in 3D), as in the post-processing of
    the semi-supervised literature. MONAI's `KeepLargestConnectedComponent` keeps the last of equal components.

    Args:
        mask: bool or 0 and 1, with any number of axes.

    Returns:
        bool, with the shape of `mask`; all `False` for an empty mask.
    """
    parts, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    if count == 0:
        return np.zeros(mask.shape, bool)
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1


def largest_components(labels: torch.Tensor) -> torch.Tensor:
    """Keep the largest connected component of each foreground class in each case; other voxels become background.

    Args:
        labels: `(B, D, H, W)`, int64, 0 for background; not modified.

    Returns:
        The shape, dtype and device of `labels`.
    """
    cases = labels.cpu().numpy()
    kept = np.zeros_like(cases)
    for case, kept_of_case in zip(cases, kept, strict=True):
        for c in np.unique(case[case > 0]):
            kept_of_case[largest_component(case == c)] = c
    return torch.from_numpy(kept).to(labels.device)


def keep_largest(classes: np.ndarray, chosen: Sequence[int]) -> None:
    """Set all but the largest connected component of some classes to background, in place.

    Each class is processed within its bounding box, so that memory use depends on the structures, not on the volume.

    Args:
        classes: class indices, `(X, Y, Z)`, 0 for background.
        chosen: classes to clean up, each at least 1.
    """
    boxes = ndimage.find_objects(classes, max_label=max(chosen, default=0))
    for c in chosen:
        if boxes[c - 1] is not None:
            part = classes[boxes[c - 1]]
            of_class = part == c
            part[of_class & ~largest_component(of_class)] = 0


def classes_to_reduce(wanted: bool | str | Sequence[str], label_names: Sequence[str]) -> list[int]:
    """Return the class indices of the structures that the option `largest_component` names.

    Args:
        wanted: `True` for all structures, `False` for none, the name of one, or a list of names. The strings `"true"`
            and `"false"` come from a command line.
        label_names: names of the classes, background first.

    Raises:
        UserError: for a name that is not a structure.
    """
    structures = list(label_names)[1:]
    if wanted in (True, False, "true", "false"):
        return list(range(1, len(structures) + 1)) if wanted in (True, "true") else []
    names = [wanted] if isinstance(wanted, str) else list(cast(Sequence[str], wanted))
    unknown = [name for name in names if name not in structures]
    if unknown:
        raise UserError(
            f"largest_component names {unknown[0]!r}, which is not a structure: choose from {', '.join(structures)}, "
            "or true for all."
        )
    return sorted({structures.index(name) + 1 for name in names})
