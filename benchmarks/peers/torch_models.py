"""Both networks in PyTorch, as the bundle's graphs: normalisations folded, 1x1 convolutions lifted.

That is the form that suits PyTorch best too: no batch normalisation is left to compute, and the 1x1
convolutions of an upsampled tensor run before the upsampling. Names are those of the Keras layers, which
the weights go by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers.job import Job

IMAGENET_BGR_MEANS = (103.939, 116.779, 123.68)
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Filters, blocks and stride of each stage of ResNet50."""

Arrays = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


class Weights:
    """Makes layers with the weights that an .npz has for them."""

    def __init__(self, path: str) -> None:
        with np.load(path, allow_pickle=False) as file:
            self._arrays: Arrays = {name: file[name] for name in file.files}

    def convolution(self, name: str, stride: int = 1, padding: int = 0) -> nn.Conv2d:
        kernel = self._tensor(f"{name}/kernel").permute(3, 2, 0, 1)
        return _convolution(kernel, self._tensor(f"{name}/bias"), stride, padding)

    def split_convolution(self, name: str, low: int) -> tuple[nn.Conv2d, nn.Conv2d]:
        """A 1x1 convolution over `low` upsampled and further channels, as two; the second has the bias."""
        kernel = self._tensor(f"{name}/kernel").permute(3, 2, 0, 1)
        bias = self._tensor(f"{name}/bias")
        return _convolution(kernel[:, :low], None), _convolution(kernel[:, low:], bias)

    def dense(self, name: str) -> nn.Linear:
        kernel = self._tensor(f"{name}/kernel")
        layer = nn.Linear(*kernel.shape)
        layer.weight.data.copy_(kernel.T)
        layer.bias.data.copy_(self._tensor(f"{name}/bias"))
        return layer

    def scale_and_shift(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Of a normalisation that could not be folded, `[C,1,1]`."""
        scale, shift = (self._tensor(f"{name}/{part}")[:, None, None] for part in ("gamma", "beta"))
        return nn.Parameter(scale), nn.Parameter(shift)

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name])


class Bottleneck(nn.Module):
    """Of ResNet50's first version, which has the stride in its first convolution."""

    def __init__(self, weights: Weights, name: str, stride: int, *, first: bool) -> None:
        super().__init__()
        self.conv1 = weights.convolution(f"{name}_1_conv", stride)
        self.conv2 = weights.convolution(f"{name}_2_conv", padding=1)
        self.conv3 = weights.convolution(f"{name}_3_conv")
        self.short = weights.convolution(f"{name}_0_conv", stride) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        main = torch.relu(self.conv1(x))
        main = torch.relu(self.conv2(main))
        return torch.relu(self.conv3(main) + self.short(x))


class Classifier(nn.Module):
    """`[N,256,256,3] uint8` RGB to the tumour probability `[N]` float32."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        weights = Weights(job.weights["classifier"])
        self.imagenet_input = job.imagenet_input
        self.register_buffer("means", torch.tensor(IMAGENET_BGR_MEANS), persistent=False)
        self.stem = weights.convolution("conv1_conv", stride=2, padding=3)
        blocks = []
        for stage, (_, count, stride) in enumerate(STAGES, start=2):
            for block in range(1, count + 1):
                name = f"conv{stage}_block{block}"
                blocks.append(Bottleneck(weights, name, stride if block == 1 else 1, first=block == 1))
        self.blocks = nn.Sequential(*blocks)
        self.dense1 = weights.dense("head_dense1")
        self.dense2 = weights.dense("head_dense2")
        self.logits = weights.dense("logits")

    def forward(self, images: Tensor) -> Tensor:
        values = images.float()
        values = values.flip(-1) - cast("Tensor", self.means) if self.imagenet_input else values / 255
        x = values.permute(0, 3, 1, 2).to(self.stem.weight.dtype)
        x = functional.max_pool2d(torch.relu(self.stem(x)), 3, 2, padding=1)
        x = functional.avg_pool2d(self.blocks(x), 4)
        x = x.permute(0, 2, 3, 1).flatten(1)
        x = torch.relu(self.dense2(torch.relu(self.dense1(x))))
        return self.logits(x).float().softmax(-1)[:, 1]


class ResBlock(nn.Module):
    """1x1, 3x3 and a 1x1 shortcut."""

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.conv1 = weights.convolution(f"{name}_conv1")
        self.conv2 = weights.convolution(f"{name}_conv2", padding=1)
        self.short = weights.convolution(f"{name}_short_conv")

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.short(x))


class UpBlock(nn.Module):
    """The same over an upsampled tensor and a skip."""

    def __init__(self, weights: Weights, name: str, low: int) -> None:
        super().__init__()
        self.conv1_low, self.conv1_skip = weights.split_convolution(f"{name}_conv1", low)
        self.conv2 = weights.convolution(f"{name}_conv2", padding=1)
        self.short_low, self.short_skip = weights.split_convolution(f"{name}_short_conv", low)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        main = torch.relu(_upsampled(self.conv1_low(x)) + self.conv1_skip(skip))
        return torch.relu(self.conv2(main) + _upsampled(self.short_low(x)) + self.short_skip(skip))


class Segmenter(nn.Module):
    """`[N,256,256,3] uint8` to pixel probabilities `[N,256,256]` float32."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        weights = Weights(job.weights["segmenter"])
        self.stem1 = weights.convolution("stem_conv1", padding=1)
        self.scale1, self.shift1 = weights.scale_and_shift("stem_bn1")
        self.stem2 = weights.convolution("stem_conv2", padding=1)
        self.scale2, self.shift2 = weights.scale_and_shift("stem_bn2")
        self.down = nn.ModuleList(
            ResBlock(weights, name) for name in ("down2", "down3", "down4", "bottleneck")
        )
        lows = {"up4": 256, "up3": 128, "up2": 64, "up1": 32}
        self.up = nn.ModuleList(UpBlock(weights, name, low) for name, low in lows.items())
        self.logits = weights.convolution("logits")

    def forward(self, images: Tensor) -> Tensor:
        values = images.float()
        centred = values - values.mean((1, 2, 3), keepdim=True)
        deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
        x = (centred / deviation.clamp_min(1)).permute(0, 3, 1, 2).to(self.stem1.weight.dtype)
        x = torch.relu(self.stem1(x)) * self.scale1 + self.shift1
        x = torch.relu(self.stem2(x)) * self.scale2 + self.shift2
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(functional.max_pool2d(x, 2))
        for block in self.up:
            x = block(x, skips.pop())
        return self.logits(x).float().sigmoid()[:, 0]


def load_models(job: Job) -> tuple[nn.Module, nn.Module]:
    """Classifier and segmenter: channels last, in the job's precision, compiled if it asks for that."""
    torch.set_num_threads(job.cores)
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    if job.compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True  # weights are packed once, which the compiler leaves alone by itself
    found: list[nn.Module] = []
    for network in (Classifier(job), Segmenter(job)):
        network.eval().to(memory_format=torch.channels_last)
        for name, parameter in network.named_parameters():
            del name
            parameter.data = parameter.data.to(dtype)
        found.append(cast("nn.Module", torch.compile(network)) if job.compiled else network)
    return found[0], found[1]


def _convolution(kernel: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    filters, channels, size, _ = kernel.shape
    layer = nn.Conv2d(channels, filters, size, stride, padding, bias=bias is not None)
    layer.weight.data.copy_(kernel)
    if bias is not None and layer.bias is not None:
        layer.bias.data.copy_(bias)
    return layer


def _upsampled(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="nearest")
