# SPDX-License-Identifier: Apache-2.0
"""Transforms that MONAI does not have."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from scripts.errors import BundleError


class CheckLabelsd(MapTransform):
    """Refuse label volumes with values that the dataset does not declare, before they become wrong targets in silence.

    Args:
        keys: label volumes, integer valued.
        values: allowed values.
        allow_missing_keys: whether cases without these keys pass.
    """

    def __init__(self, keys: KeysCollection, values: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = sorted(int(v) for v in values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` unchanged.

        Raises:
            BundleError: naming the file, the value and the declared ones.
        """
        for key in self.key_iterator(data):
            found = torch.unique(torch.as_tensor(data[key]))
            allowed = torch.tensor(self.values, dtype=found.dtype, device=found.device)
            undeclared = found[~torch.isin(found, allowed)]
            if len(undeclared) > 0:
                name = getattr(data[key], "meta", {}).get("filename_or_obj", key)
                raise BundleError(
                    f"{name} holds the label value {undeclared[0].item()!r}, but label_names declares {self.values}. "
                    "Declare it in the dataset's YAML or correct the file."
                )
        return dict(data)
