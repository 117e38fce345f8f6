# SPDX-License-Identifier: Apache-2.0
"""Forward passes of a training step: logits, features of a named layer, and the teacher's logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from monai.inferers import Inferer
from torch import nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from scripts.distributed.collectives import all_gather_batch, fork_rng_per_rank, shard_batch
from scripts.errors import UserError
from scripts.losses.base import TrainingBatch
from scripts.networks.norms import running_statistics_kept
from scripts.prototypes.voxels import NO_CLASS
from scripts.training.precision import mixed_precision


class FeatureInferer(Inferer):
    """Run a training step's forward passes and return its `TrainingBatch`.

    The features are the output of a named layer. They are read with a hook that exists only during a pass, so copies,
    TorchScript exports and plain calls of the network are not affected. Inputs whose sides are not multiples of
    `divisor` are padded at the end of each axis, and the results are cropped.

    With several processes, each holds the whole batch, runs every pass on its share of the cases, and receives the
    results of all processes. Loss and memory bank are therefore the same as in one process with the whole batch.

    The inferer needs a `TwoStreamTrainer`, which passes the labels to it.

    Args:
        layer: name of the layer as in `network.named_modules()`, e.g. `decoder.stage1` for `VNet`.
        divisor: the network needs sides that are multiples of this number (16 for `VNet`).
        dtype: autocast's type, `torch.bfloat16`, or `None` for no autocast.
        teacher: network that computes `teacher_logits`, or `None`. It runs in evaluation mode without gradient.
        deep_layers: names of further layers whose outputs become `deep_features`, for deep supervision.
        activation_checkpointing: whether the network's `stages` store only their inputs and recompute their activations
            in the backward pass (Chen et al., 2016). This needs less memory and more time, and gives the same numbers.

    Raises:
        UserError: when called, if the network has no such layer or the layer's output is not a feature map.
    """

    def __init__(
        self,
        layer: str,
        divisor: int = 16,
        dtype: torch.dtype | None = None,
        teacher: nn.Module | None = None,
        deep_layers: Sequence[str] = (),
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.layer, self.divisor, self.dtype, self.teacher = layer, divisor, dtype, teacher
        self.deep_layers = tuple(deep_layers)
        self.activation_checkpointing = activation_checkpointing
        self._seed: int | None = None  # torch's seed, which changes with every step
        self._passes = 0  # number of passes since the seed changed

    def __call__(
        self,
        inputs: torch.Tensor,
        network: nn.Module,
        label: torch.Tensor,
        weak: torch.Tensor | None = None,
        stored: torch.Tensor | None = None,
        cases: Sequence[str] = (),
    ) -> TrainingBatch:
        """Run the step's forward passes.

        Args:
            inputs: images `(L + U, C, D, H, W)`, labelled cases first.
            network: image to logits.
            label: classes of the labelled cases, `(L, 1, D, H, W)`.
            weak: the unlabelled cases before intensity augmentation, `(U, C, D, H, W)`, for the teacher.
            stored: pseudo-labels of the unlabelled cases, `(U, 1, D, H, W)`, that `SelfTraining` stored. If they are
                given, the teacher does not run.
            cases: names of the cases, for messages.
        """
        # Plain tensors: indexing a MetaTensor batch fails on its metadata, which a training step does not need.
        images, label = inputs.as_subclass(torch.Tensor), label.as_subclass(torch.Tensor)
        weak = weak.as_subclass(torch.Tensor) if weak is not None and len(weak) > 0 else None
        logits, outputs = self._logits_and_layers(images, network, dict.fromkeys((self.layer, *self.deep_layers)))
        target: torch.Tensor | None = None
        if stored is not None:
            target = certain_logits(stored.as_subclass(torch.Tensor)[:, 0].long(), logits.shape[1])
        elif self.teacher is not None and weak is not None:
            target = self._teacher_logits(self.teacher, weak)
        return TrainingBatch(
            logits=logits,
            features=outputs[self.layer],
            labels=label[:, 0].long(),
            images=images,
            forward_pass=partial(self._further_pass, network=network),
            weak_images=weak,
            teacher_logits=target,
            teacher_pass=None if self.teacher is None else partial(self._teacher_pass, self.teacher),
            deep_features={name: outputs[name] for name in self.deep_layers},
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

        Both are float32 or wider, even under autocast.
        """
        logits, outputs = self._logits_and_layers(inputs, network, (self.layer,))
        return logits, outputs[self.layer]

    def _logits_and_layers(
        self, inputs: torch.Tensor, network: nn.Module, layers: Collection[str]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        caught: dict[str, torch.Tensor] = {}

        def catch(name: str) -> Callable[..., None]:
            return lambda _module, _args, output: caught.update({name: output})

        handles = [self._find_layer(network, name).register_forward_hook(catch(name)) for name in layers]
        try:
            logits = self._sharded_pass(inputs, network)
        finally:
            for handle in handles:
                handle.remove()
        for name in layers:
            output = caught.get(name)
            if not isinstance(output, torch.Tensor) or output.ndim != inputs.ndim:
                raise UserError(f"Layer '{name}' has no feature map (B, F, d, h, w); set feature_layer to another one.")
            caught[name] = all_gather_batch(_wide(self._cropped(output, inputs, name)), len(inputs))
        return logits, caught

    def _sharded_pass(self, inputs: torch.Tensor, network: nn.Module) -> torch.Tensor:
        """Return the logits of all inputs; a hook on the network sees only this process's share of them."""
        part = shard_batch(inputs)
        if self._seed != torch.initial_seed():
            self._seed, self._passes = torch.initial_seed(), 0
        precision = partial(mixed_precision, device_type=part.device.type, dtype=self.dtype)
        stages = _stages_recomputed(network, precision) if self.activation_checkpointing else nullcontext()
        with precision(network), fork_rng_per_rank(self._passes, part.device), stages:
            logits = network(self._padded(part))
        self._passes += 1
        # Contiguous: a reduction over classes, such as argmax, is many times slower in channels-last layout.
        return all_gather_batch(_wide(self._cropped(logits, part, "output")).contiguous(), len(inputs))

    @torch.no_grad()
    def _teacher_logits(self, teacher: nn.Module, weak: torch.Tensor) -> torch.Tensor:
        return self._sharded_pass(weak, teacher.eval())

    @torch.no_grad()
    def _teacher_pass(self, teacher: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits_and_features(images, teacher.eval())

    def _find_layer(self, network: nn.Module, layer: str) -> nn.Module:
        # DistributedDataParallel keeps the network in `module`.
        network = getattr(network, "module", network)
        layers = dict(network.named_modules())
        if layer not in layers:
            some = ", ".join(name for name in layers if name)[:300]
            raise UserError(f"{type(network).__name__} has no layer '{layer}' (feature_layer). It has: {some} ...")
        return layers[layer]

    def _padded(self, inputs: torch.Tensor) -> torch.Tensor:
        missing = [-side % self.divisor for side in inputs.shape[2:]]
        if not any(missing):
            return inputs
        # `pad` takes the last axis first. Padding at the end keeps coarse features aligned with the image.
        return pad(inputs, [amount for m in reversed(missing) for amount in (0, m)])

    def _cropped(self, output: torch.Tensor, inputs: torch.Tensor, layer: str) -> torch.Tensor:
        """Crop the padding from a layer's output; at 1/s of the resolution ceil(side / s) cells remain."""
        for axis in range(2, inputs.ndim):
            side = inputs.shape[axis]
            stride = (side + -side % self.divisor) // output.shape[axis]
            if stride < 1:
                raise UserError(f"Layer '{layer}' is finer than the image; set feature_layer to another one.")
            cells = -(-side // stride)
            if cells < output.shape[axis]:  # otherwise the backward pass would copy the whole gradient
                output = output.narrow(axis, 0, cells)
        return output


CERTAIN = 20.0
"""Logit of the labelled class in `certain_logits`; the others are 0. With two classes its probability is 1 - 2e-9."""


def certain_logits(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return logits whose softmax is the one-hot form of `labels` `(B, D, H, W)`.

    Where a label is `NO_CLASS`, the logits are NaN, and `pseudo_labels` gives the voxel no class.

    Returns:
        `(B, K, D, H, W)`, float32.
    """
    logits = CERTAIN * torch.stack([labels == index for index in range(num_classes)], dim=1).float()
    return logits.masked_fill((labels == NO_CLASS)[:, None], math.nan)


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


def stages(network: nn.Module) -> list[nn.Module]:
    """Return the layers at the second level, such as `encoder.stage1` of `VNet` or `decoder.0` of `ResidualUNet`."""
    network = getattr(network, "module", network)
    return [layer for name, layer in network.named_modules() if name.count(".") == 1]


@contextmanager
def _stages_recomputed(
    network: nn.Module, precision: Callable[[nn.Module], AbstractContextManager[None]]
) -> Iterator[None]:
    """Context in which a network's stages store only their inputs and recompute activations in the backward pass.

    The recomputation uses the precision of the forward pass, and keeps parameters fixed if they were fixed there.

    Raises:
        UserError: for a network with running statistics, which the recomputation would update a second time.
    """
    if any(name.endswith("running_mean") for name, _ in network.named_buffers()):
        raise UserError(
            "activation_checkpointing does not work with batch norm, whose statistics would be recorded twice: choose "
            "instance or group norm (--network_def::norm), or --accumulation_steps to save memory."
        )
    fixed = not any(parameter.requires_grad for parameter in network.parameters())

    @contextmanager
    def recomputation(stage: nn.Module) -> Iterator[None]:
        with precision(stage), _parameters_fixed(stage) if fixed else nullcontext():
            yield

    def contexts(stage: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), recomputation(stage)

    changed = stages(network)
    for stage in changed:
        stage.forward = partial(checkpoint, stage.forward, use_reentrant=False, context_fn=partial(contexts, stage))
    try:
        yield
    finally:
        for stage in changed:
            del stage.forward
