"""What the device does to images: crops, mirroring, color noise and mean subtraction (§4.1).

An image has ten uniform draws, which depend on (seed, epoch, id) alone. So any number of devices,
and a resumed run, see the same images.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from alexnet import rng
from alexnet.errors import UserError, check_choice

TEN_VIEWS = 10
# What an image's draws decide.
CORNER = slice(0, 2)  # row and column where its crop starts
MIRROR = 2
NOISE = slice(3, 9)  # two draws for each of three normal numbers
FADE = 9
DRAWS = 9  # without FADE, which is drawn only if needed


class Variation(NamedTuple):
    """What is done to each image of a batch."""

    top: Tensor  # (n,) int64, where its crop starts
    left: Tensor  # (n,) int64
    mirrored: Tensor | None  # (n,) bool; None if no image is
    shift: Tensor  # (n, 3) float32, added to its colors


class Augment:
    """The paper's augmentation of uint8 batches, on whatever device they lie.

    Arguments:
        mean: (size, size, 3) float32 mean image of the training set, 0-255.
        color_std, color_vectors: (3,) and (3, 3) principal components of its RGB values, 0-255;
            vectors in columns.
        seed: of all draws.
        crop: height and width that the network sees; at most those of the stored images.
        random_crop: False takes the center in training as well.
        mirror: whether half of the training images are mirrored.
        color_noise: the coefficient c; 0 turns the noise off.
        color_noise_off: spans [from, to) of epochs in which c is 0; the authors turned the noise
            off together with their late LR steps.
        shared_by: consecutive images that share one crop and mirroring, 32 in 2012.
        fade: fraction of such groups in which each image is blended with another one of the group,
            ¾ to ¼, and keeps its label (net 170-fade; there the ¼ came from an earlier group, but
            within a group no device needs another's images).
        convention: `source` adds c · Σ z·s·p to an image, with components p, standard deviations s
            and normal draws z, divides by 1 + c in training, and subtracts the center of the mean
            image from every crop. `paper` uses the eigenvalues s² (on the 0-1 scale, as everyone
            since), does not divide, and crops the mean image as it does the image.
        scale: multiplies the result; 1 keeps 0-255, as in 2012.
    """

    def __init__(
        self,
        mean: np.ndarray,
        color_std: np.ndarray,
        color_vectors: np.ndarray,
        seed: int = 0,
        *,
        crop: PositiveInt = 224,
        random_crop: bool = True,
        mirror: bool = True,
        color_noise: NonNegativeFloat = 0.1,
        color_noise_off: Sequence[tuple[int, int]] = (),
        shared_by: PositiveInt = 1,
        fade: Annotated[float, Interval(ge=0, le=1)] = 0.0,
        convention: Literal["source", "paper"] = "source",
        scale: float = 1.0,
    ):
        self.seed = seed
        self.crop = crop
        self.random_crop = random_crop
        self.mirror = mirror
        self.color_noise = color_noise
        self.color_noise_off = color_noise_off
        self.shared_by = shared_by
        self.fade = fade
        self.convention = convention
        self.scale = scale
        self._check_values(len(mean))
        self.border = len(mean) - crop  # the last row and column at which a crop can start
        self.middle = self.border // 2
        std = np.asarray(color_std, np.float32)
        # Eigenvalues on the 0-1 scale, brought to 0-255.
        amplitudes = std if convention == "source" else std**2 / 255
        colors = np.asarray(color_vectors, np.float32) * amplitudes
        self.color = torch.from_numpy(colors).T.contiguous()  # a component in each row
        self.mean = torch.from_numpy(np.ascontiguousarray(mean, np.float32))
        self.five_corners = torch.tensor(self._list_five_corners())
        # `compile` replaces these two.
        self.draw_variation = self._draw_variation
        self.vary = self._vary

    def compile(self) -> None:
        """Compiles the work on training images: a kernel for the draws and one for the pixels.

        For GPUs; on a CPU the compiler makes slow scalar loops of it.
        """
        self.draw_variation = torch.compile(self._draw_variation, dynamic=False)
        self.vary = torch.compile(self._vary, dynamic=False)

    def crop_randomly(self, images: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """Crops for training, with all that is random.

        (n, size, size, 3) uint8 and (n,) int64 to (n, 3, crop, crop) float32, channels last in
        memory.
        """
        self._move_to(images.device)
        noise = self.color_noise_at(epoch)
        factor = 1 / (1 + noise) if self.convention == "source" else 1.0
        keys = rng.make_keys(self.seed, epoch, ids)
        crops = self.vary(images, self.draw_variation(keys, noise), factor)
        return self._blend_groups(crops, keys) if self.fade else crops

    def crop_center(self, images: Tensor) -> Tensor:
        """(n, size, size, 3) uint8 to their center crops, (n, 3, crop, crop) float32."""
        self._move_to(images.device)
        middle = torch.full((len(images),), self.middle, device=images.device)
        return self._scale(self._cut_and_center(images, middle, middle))

    def crop_ten_views(self, images: Tensor) -> Tensor:
        """The corners and the center, then their mirror images.

        (n, size, size, 3) uint8 to (n · 10, 3, crop, crop) float32, the views of an image together.
        """
        self._move_to(images.device)
        top, left = self.five_corners.repeat(len(images), 1).unbind(1)
        repeated = images.repeat_interleave(len(self.five_corners), 0)
        halves = []
        for mirror in (False, True):
            mirrored = torch.full_like(top, mirror, dtype=torch.bool)
            crops = self._cut_and_center(repeated, top, left, mirrored)
            halves.append(crops.reshape(len(images), -1, *crops.shape[1:]))
        return self._scale(torch.cat(halves, 1).flatten(0, 1))

    def color_noise_at(self, epoch: int) -> float:
        """The coefficient c in an epoch."""
        for begin, end in self.color_noise_off:
            if begin <= epoch < end:
                return 0.0
        return self.color_noise

    def _check_values(self, size: int) -> None:
        check_choice("augment.convention", self.convention, ("source", "paper"))
        if not 0 < self.crop <= size:
            raise UserError(
                f"augment.crop={self.crop} must lie in 1..{size}, the size of the store's images"
            )
        if self.color_noise < 0:
            raise UserError(f"augment.color_noise={self.color_noise} must not be negative")
        if self.shared_by < 1:
            raise UserError(f"augment.shared_by={self.shared_by} must be at least 1")
        if not 0 <= self.fade <= 1:
            raise UserError(f"augment.fade={self.fade} must lie in 0..1")
        if self.fade and self.shared_by == 1:
            raise UserError(f"augment.fade={self.fade} needs augment.shared_by of at least 2")

    def _list_five_corners(self) -> list[tuple[int, int]]:
        """Where the crops of the paper's views start, in their order."""
        middle = self.middle
        far = self.border
        return [(0, 0), (0, far), (middle, middle), (far, 0), (far, far)]

    def _draw_variation(self, keys: Tensor, noise: float) -> Variation:
        draws = rng.draw_uniform(keys, 0, DRAWS)
        # The first image of a group decides for all of it.
        shared = draws[:: self.shared_by].repeat_interleave(self.shared_by, 0)[: len(keys)]
        corner = (shared[:, CORNER] * (self.border + 1)).long()
        if not self.random_crop:
            corner.fill_(self.middle)
        mirrored = shared[:, MIRROR] < 0.5 if self.mirror else None
        shift = noise * transform_to_normal(draws[:, NOISE]) @ self.color
        return Variation(corner[:, 0], corner[:, 1], mirrored, shift)

    def _vary(self, images: Tensor, variation: Variation, factor: float) -> Tensor:
        top, left, mirrored, shift = variation
        crops = self._cut_and_center(images, top, left, mirrored)
        return self._scale(crops.add_(shift[:, None, None, :]), factor)

    def _blend_groups(self, crops: Tensor, keys: Tensor) -> Tensor:
        """Blends each image of the chosen groups with its counterpart from the group's end."""
        rows = torch.arange(len(crops), device=crops.device)
        first = rows // self.shared_by * self.shared_by
        last = first + self.shared_by - 1
        other = (first + last - rows).clamp_max(len(rows) - 1)
        chosen = rng.draw_uniform(keys[first], FADE, 1) < self.fade
        return crops.lerp(crops[other], 0.25 * chosen[:, :, None, None])

    def _cut_and_center(
        self, images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor | None = None
    ) -> Tensor:
        """(n, crop, crop, 3) float32: crops, mirrored where asked for, minus the mean image."""
        rows = torch.arange(len(images), device=images.device)
        crops = mirror_images(self._view_all_crops(images)[rows, top, left], mirrored).float()
        if self.convention == "source":
            middle = slice(self.middle, self.middle + self.crop)
            return crops.sub_(self.mean[middle, middle])
        means = self._view_all_crops(self.mean[None])[torch.zeros_like(rows), top, left]
        return crops.sub_(mirror_images(means, mirrored))

    def _view_all_crops(self, images: Tensor) -> Tensor:
        """(n, border + 1, border + 1, crop, crop, 3): every crop of each image, without a copy."""
        image, row, column, channel = images.stride()
        places = self.border + 1
        shape = (len(images), places, places, self.crop, self.crop, 3)
        return images.as_strided(shape, (image, row, column, row, column, channel))

    def _scale(self, crops: Tensor, factor: float = 1.0) -> Tensor:
        """Scales crops and permutes them to (n, 3, crop, crop), without moving them in memory."""
        return crops.mul_(factor * self.scale).permute(0, 3, 1, 2)

    def _move_to(self, device: torch.device) -> None:
        """Moves the constants once; a copy in each step would make the host wait for the device."""
        self.mean = self.mean.to(device)
        self.color = self.color.to(device)
        self.five_corners = self.five_corners.to(device)


def mirror_images(images: Tensor, mirrored: Tensor | None) -> Tensor:
    """(n, height, width, 3) with those mirrored for which `mirrored`, (n,) bool, is true."""
    if mirrored is None:
        return images
    return torch.where(mirrored[:, None, None, None], images.flip(2), images)


def transform_to_normal(uniform: Tensor) -> Tensor:
    """(n, 2k) uniform draws to (n, k) normal ones, by Box and Muller."""
    first, second = uniform.chunk(2, 1)
    return (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)
