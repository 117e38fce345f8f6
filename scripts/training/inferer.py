# SPDX-License-Identifier: Apache-2.0
"""Forward pass of a training step: logits, embeddings from a named layer, and the teacher's view."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from monai.inferers import Inferer
from torch import nn
from torch.nn.functional import pad

from scripts.distributed.collectives import all_gather_batch, fork_rng_per_rank, shard_batch
from scripts.errors import UserError
from scripts.losses.base import ForwardPass
from scripts.networks.norms import running_statistics_kept


class FeatureOutput(dict[str, torch.Tensor]):
    """Tensors of a step's forward passes, and how to make a further one.

    `forward_pass` (see `scripts.losses.base.ForwardPass`) is an attribute, as MONAI splits the items of an engine's
    output into cases and knows no way to split a function. `teacher_pass` is one of the teacher, images to logits and
    features without gradient, or `None` without a teacher.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        forward_pass: ForwardPass,
        teacher_pass: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        super().__init__(tensors)
        self.forward_pass, self.teacher_pass = forward_pass, teacher_pass


class FeatureInferer(Inferer):
    """Run a segmentation network and return its logits together with the output of one of its layers.

    The hook on the layer lives for the length of one call, so copies, TorchScript and a plain call of the network never
    see it. Inputs whose sides are no multiple of `divisor` are padded at the end of each axis and the results cropped.

    Of several ranks, which all hold the whole batch, each runs every pass on its part of the cases and receives the
    results of all: what is computed from them, loss and memory, is that of one process with the whole batch.

    Args:
        layer: name of the layer as in `network.named_modules()`, e.g. `decoder.stage1` for `VNet`.
        divisor: what each side must be a multiple of for the network at hand (16 for `VNet`).
        dtype: autocast's type, `torch.bfloat16` or `None` for none.
        teacher: network whose logits for the `weak` images are returned too, or `None`. Called without gradient, in
            evaluation mode.

    Raises:
        UserError: when called, if the network has no such layer or its output is no feature map.
    """

    def __init__(
        self, layer: str, divisor: int = 16, dtype: torch.dtype | None = None, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layer, self.divisor, self.dtype, self.teacher = layer, divisor, dtype, teacher
        self._passes = 0  # of the step at hand

    def __call__(self, inputs: torch.Tensor, network: nn.Module, weak: torch.Tensor | None = None) -> FeatureOutput:
        """Run the step's forward passes.

        Args:
            inputs: images `(B, C, D, H, W)`, labelled cases first.
            network: image to logits.
            weak: the unlabelled cases before intensity augmentation, `(U, C, D, H, W)`, for the teacher.

        Returns:
            `logits` `(B, K, D, H, W)` and `features` `(B, F, d, h, w)`, both float32 or wider, `teacher_logits`
            `(U, K, D, H, W)` if there is a teacher and `weak` holds cases; for terms with passes of their own `images`
            and `weak_images` (if given), the inputs, and as attributes `forward_pass` and `teacher_pass`.
        """
        # Picking rows of a MetaTensor batch fails on its metadata; a training step has no use for it.
        images = inputs.as_subclass(torch.Tensor)
        self._passes = 0
        logits, features = self._with_features(images, network)
        result = FeatureOutput(
            {"logits": logits, "features": features, "images": images},
            partial(self._further_pass, network=network),
            None if self.teacher is None else self._teacher_pass,
        )
        if weak is not None and len(weak) > 0:
            result["weak_images"] = weak.as_subclass(torch.Tensor)
            if self.teacher is not None:
                result["teacher_logits"] = self._teacher_logits(result["weak_images"])
        return result

    def _further_pass(
        self, images: torch.Tensor, keep_statistics: bool = True, *, network: nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with running_statistics_kept(network) if keep_statistics else nullcontext():
            return self._with_features(images, network)

    def _with_features(self, inputs: torch.Tensor, network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        caught: list[torch.Tensor] = []
        handle = self._find_layer(network).register_forward_hook(lambda _module, _args, output: caught.append(output))
        try:
            logits = self._sharded_pass(inputs, network)
        finally:
            handle.remove()
        if not caught or not isinstance(caught[-1], torch.Tensor) or caught[-1].ndim != inputs.ndim:
            raise UserError(f"Layer '{self.layer}' gave no feature map (B, F, d, h, w); name another as feature_layer.")
        return logits, all_gather_batch(_wide(self._cropped(caught[-1], inputs)), len(inputs))

    def _sharded_pass(self, inputs: torch.Tensor, network: nn.Module) -> torch.Tensor:
        """Logits of all inputs; a hook on the network sees this rank's part of them only."""
        part = shard_batch(inputs)
        with self._autocast(part), fork_rng_per_rank(self._passes, part.device):
            logits = network(self._padded(part))
        self._passes += 1
        return all_gather_batch(_wide(self._cropped(logits, part)), len(inputs))

    @torch.no_grad()
    def _teacher_logits(self, weak: torch.Tensor) -> torch.Tensor:
        self.teacher.eval()
        return self._sharded_pass(weak, self.teacher)

    @torch.no_grad()
    def _teacher_pass(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.teacher.eval()
        return self._with_features(images, self.teacher)

    def _find_layer(self, network: nn.Module) -> nn.Module:
        # DistributedDataParallel keeps the network in `module`.
        network = getattr(network, "module", network)
        layers = dict(network.named_modules())
        if self.layer not in layers:
            some = ", ".join(name for name in layers if name)[:300]
            raise UserError(f"{type(network).__name__} has no layer '{self.layer}' (feature_layer). It has: {some} ...")
        return layers[self.layer]

    def _autocast(self, inputs: torch.Tensor) -> AbstractContextManager:
        return nullcontext() if self.dtype is None else torch.autocast(inputs.device.type, dtype=self.dtype)

    def _padded(self, inputs: torch.Tensor) -> torch.Tensor:
        missing = [-side % self.divisor for side in inputs.shape[2:]]
        if not any(missing):
            return inputs
        # torch pads the last axis first; new voxels come after the old ones, so coarse features keep their places.
        return pad(inputs, [amount for m in reversed(missing) for amount in (0, m)])

    def _cropped(self, output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Cut what stands for padding; a layer at 1/s of the resolution keeps ceil(side / s) cells."""
        for axis in range(2, inputs.ndim):
            side = inputs.shape[axis]
            stride = (side + -side % self.divisor) // output.shape[axis]
            if stride < 1:
                raise UserError(f"Layer '{self.layer}' is finer than the image; name another as feature_layer.")
            output = output.narrow(axis, 0, -(-side // stride))
        return output


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
