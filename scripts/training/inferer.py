# SPDX-License-Identifier: Apache-2.0
"""Forward passes of a training step: logits, features of a named layer, and the teacher's logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from monai.inferers import Inferer
from torch import nn
from torch.nn.functional import pad

from scripts.distributed.collectives import all_gather_batch, fork_rng_per_rank, shard_batch
from scripts.errors import UserError
from scripts.losses.base import TrainingBatch
from scripts.networks.norms import running_statistics_kept
from scripts.training.precision import mixed_precision


class FeatureInferer(Inferer):
    """Run a training step's forward passes and return its `TrainingBatch`.

    The features are the output of a named layer. A hook on that layer exists only during a pass, so copies, TorchScript
    and plain calls of the network never see it. Inputs whose sides are not multiples of `divisor` are padded at the end
    of each axis, and the results are cropped.

    With several processes each one holds the whole batch, runs every pass on its share of the cases and receives the
    results of all. Loss and memory are therefore the same as in one process with the whole batch.

    MONAI's `SupervisedTrainer` needs `prepare_batch: scripts.data.streams.prepare_two_stream_batch`, which hands the
    labels to the inferer, and `decollate: false`.

    Args:
        layer: name of the layer as in `network.named_modules()`, e.g. `decoder.stage1` for `VNet`.
        divisor: each side must be a multiple of it for the network in use (16 for `VNet`).
        dtype: autocast's type, `torch.bfloat16`, or `None` for no autocast.
        teacher: network that computes `teacher_logits`, or `None`. It runs in evaluation mode without gradient.

    Raises:
        UserError: when called, if the network has no such layer or the layer's output is not a feature map.
    """

    def __init__(
        self, layer: str, divisor: int = 16, dtype: torch.dtype | None = None, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layer, self.divisor, self.dtype, self.teacher = layer, divisor, dtype, teacher
        self._passes = 0  # in this step

    def __call__(
        self,
        inputs: torch.Tensor,
        network: nn.Module,
        label: torch.Tensor,
        weak: torch.Tensor | None = None,
        cases: Sequence[str] = (),
    ) -> TrainingBatch:
        """Run the step's forward passes.

        Args:
            inputs: images `(L + U, C, D, H, W)`, labelled cases first.
            network: image to logits.
            label: classes of the labelled cases, `(L, 1, D, H, W)`.
            weak: the unlabelled cases before intensity augmentation, `(U, C, D, H, W)`, for the teacher.
            cases: names of the cases, for messages.
        """
        # Plain tensors: indexing a MetaTensor batch fails on its metadata, which a training step does not need.
        images, label = inputs.as_subclass(torch.Tensor), label.as_subclass(torch.Tensor)
        weak = weak.as_subclass(torch.Tensor) if weak is not None and len(weak) > 0 else None
        self._passes = 0
        logits, features = self.logits_and_features(images, network)
        return TrainingBatch(
            logits=logits,
            features=features,
            labels=label[:, 0].long(),
            images=images,
            forward_pass=partial(self._further_pass, network=network),
            weak_images=weak,
            teacher_logits=None if self.teacher is None or weak is None else self._teacher_logits(self.teacher, weak),
            teacher_pass=None if self.teacher is None else partial(self._teacher_pass, self.teacher),
            cases=cases,
        )

    def _further_pass(
        self, images: torch.Tensor, keep_statistics: bool = True, fixed_parameters: bool = False, *, network: nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with (
            running_statistics_kept(network) if keep_statistics else nullcontext(),
            _parameters_fixed(network) if fixed_parameters else nullcontext(),
        ):
            return self.logits_and_features(images, network)

    def logits_and_features(self, inputs: torch.Tensor, network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one pass: images `(B, C, D, H, W)` to logits `(B, K, D, H, W)` and features `(B, F, d, h, w)`.

        Both are float32 or wider, also under autocast.
        """
        caught: list[torch.Tensor] = []
        handle = self._find_layer(network).register_forward_hook(lambda _module, _args, output: caught.append(output))
        try:
            logits = self._sharded_pass(inputs, network)
        finally:
            handle.remove()
        if not caught or not isinstance(caught[-1], torch.Tensor) or caught[-1].ndim != inputs.ndim:
            raise UserError(
                f"Layer '{self.layer}' has no feature map (B, F, d, h, w); set feature_layer to another one."
            )
        return logits, all_gather_batch(_wide(self._cropped(caught[-1], inputs)), len(inputs))

    def _sharded_pass(self, inputs: torch.Tensor, network: nn.Module) -> torch.Tensor:
        """Logits of all inputs; a hook on the network sees only this process's share of them."""
        part = shard_batch(inputs)
        with mixed_precision(network, part.device.type, self.dtype), fork_rng_per_rank(self._passes, part.device):
            logits = network(self._padded(part))
        self._passes += 1
        # A reduction over classes, as argmax, is many times slower where the classes lie next to each other.
        return all_gather_batch(_wide(self._cropped(logits, part)).contiguous(), len(inputs))

    @torch.no_grad()
    def _teacher_logits(self, teacher: nn.Module, weak: torch.Tensor) -> torch.Tensor:
        return self._sharded_pass(weak, teacher.eval())

    @torch.no_grad()
    def _teacher_pass(self, teacher: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits_and_features(images, teacher.eval())

    def _find_layer(self, network: nn.Module) -> nn.Module:
        # DistributedDataParallel keeps the network in `module`.
        network = getattr(network, "module", network)
        layers = dict(network.named_modules())
        if self.layer not in layers:
            some = ", ".join(name for name in layers if name)[:300]
            raise UserError(f"{type(network).__name__} has no layer '{self.layer}' (feature_layer). It has: {some} ...")
        return layers[self.layer]

    def _padded(self, inputs: torch.Tensor) -> torch.Tensor:
        missing = [-side % self.divisor for side in inputs.shape[2:]]
        if not any(missing):
            return inputs
        # torch pads the last axis first. Padding at the end keeps coarse features in place.
        return pad(inputs, [amount for m in reversed(missing) for amount in (0, m)])

    def _cropped(self, output: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Crop the padding; a layer at 1/s of the resolution keeps ceil(side / s) cells."""
        for axis in range(2, inputs.ndim):
            side = inputs.shape[axis]
            stride = (side + -side % self.divisor) // output.shape[axis]
            if stride < 1:
                raise UserError(f"Layer '{self.layer}' is finer than the image; set feature_layer to another one.")
            output = output.narrow(axis, 0, -(-side // stride))
        return output


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def _parameters_fixed(network: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
