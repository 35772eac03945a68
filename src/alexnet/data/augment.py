"""What happens to images on the device: crop, mirror image, color noise, mean subtraction and the ten views."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from alexnet import rng

TEN_VIEWS = 10


class Augment:
    """The paper's augmentation (§4.1) of uint8 batches, on whatever device they lie.

    What a image gets depends on (seed, epoch, its id) alone, so every number of devices and a resumed run see the
    same images.

    Arguments:
        mean: (size, size, 3) float32 mean image of the training set, 0-255.
        color_std, color_vectors: (3,) and (3, 3) principal components of its RGB values, 0-255; vectors in columns.
        seed: of all draws.
        crop: height and width that the net sees; the training set's images are at least as large.
        random_crop: False takes the center in training as well.
        mirror: half of the training images are mirrored.
        color_noise: the coefficient c; 0 turns it off.
        color_noise_off: spans [from, to] of epochs in which c is 0; the authors turned it off with their late drops.
        shared_by: so many images in a row share one crop and mirroring, 32 in 2012.
        fade: the share of such rows in which each image is ¾ itself and ¼ another of the row, under its own label
            (net 170-fade, whose ¼ was of an earlier row; this way no device needs another's images).
        convention: `source` adds c · Σ z·s·p per image with s the standard deviations, divides by 1 + c in
            training, and subtracts the center of the mean image from any crop. `paper` has the eigenvalues s² (on the
            0-1 scale, as everyone since) in place of s, no division, and the mean image cropped like the image.
        scale: multiplies the result; 1 keeps 0-255, as in 2012.
    """

    def __init__(
        self,
        mean: np.ndarray,
        color_std: np.ndarray,
        color_vectors: np.ndarray,
        seed: int = 0,
        *,
        crop: int = 224,
        random_crop: bool = True,
        mirror: bool = True,
        color_noise: float = 0.1,
        color_noise_off: Sequence[Sequence[int]] = (),
        shared_by: int = 1,
        fade: float = 0.0,
        convention: str = "source",
        scale: float = 1.0,
    ):
        size = mean.shape[0]
        if convention not in ("source", "paper"):
            raise ValueError(
                f"augment.convention={convention} is not known; choose one of source, paper"
            )
        if not 0 < crop <= size:
            raise ValueError(
                f"augment.crop={crop} must lie in 1..{size}, the size of the store's images"
            )
        if color_noise < 0:
            raise ValueError(f"augment.color_noise={color_noise} must not be negative")
        if shared_by < 1:
            raise ValueError(f"augment.shared_by={shared_by} must be at least 1")
        if not 0 <= fade <= 1 or fade and shared_by == 1:
            raise ValueError(
                f"augment.fade={fade} must lie in 0..1, and needs augment.shared_by of at least 2"
            )
        std = np.asarray(color_std, np.float32)
        spread = (
            std if convention == "source" else std**2 / 255
        )  # eigenvalue on the 0-1 scale, shown on 0-255
        self.mean = torch.from_numpy(np.ascontiguousarray(mean, np.float32))
        self.color = torch.from_numpy(np.asarray(color_vectors, np.float32) * spread).T.contiguous()
        self.seed, self.crop, self.border = seed, crop, size - crop
        far, mid = self.border, self.border // 2
        self.five_crops = torch.tensor([(0, 0), (0, far), (mid, mid), (far, 0), (far, far)])
        self.random_crop, self.mirror, self.color_noise = random_crop, mirror, color_noise
        self.color_noise_off, self.shared_by, self.fade = color_noise_off, shared_by, fade
        self.convention, self.scale = convention, scale

    def compile(self) -> None:
        """Compiles the work on training images: a kernel for the draws and one for the pixels. For GPUs; a CPU's
        compiler makes scalar loops of it."""
        for name in ("_drawn", "_varied"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False))

    def train(self, images: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """(n, size, size, 3) uint8 and (n,) int64 to (n, 3, crop, crop) float32 in channels-last memory."""
        self._to(images.device)
        noise = self.color_noise_at(epoch)
        factor = 1 / (1 + noise) if self.convention == "source" else 1.0
        keys = rng.make_keys(self.seed, epoch, ids)
        crops = self._varied(images, *self._drawn(keys, noise), factor)
        return self._faded(crops, keys) if self.fade else crops

    def _drawn(self, keys: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Each crop's corner, whether it is mirrored, and what is added to its colors, (n, 3)."""
        draws = rng.draw_uniform(keys, 0, 9)
        geometry = draws[:: self.shared_by, :3].repeat_interleave(self.shared_by, 0)[: len(keys)]
        offsets = (geometry[:, :2] * (self.border + 1)).long()
        if not self.random_crop:
            offsets.fill_(self.border // 2)
        mirrored = geometry[:, 2] < 0.5 if self.mirror else None
        return offsets[:, 0], offsets[:, 1], mirrored, noise * normal(draws[:, 3:]) @ self.color

    def _varied(
        self,
        images: Tensor,
        y: Tensor,
        x: Tensor,
        mirrored: Tensor | None,
        shift: Tensor,
        factor: float,
    ) -> Tensor:
        return self._finish(
            self._centered(images, y, x, mirrored).add_(shift[:, None, None, :]), factor
        )

    def _faded(self, crops: Tensor, keys: Tensor) -> Tensor:
        rows = torch.arange(len(crops), device=crops.device)
        first = rows // self.shared_by * self.shared_by
        other = (2 * first + self.shared_by - 1 - rows).clamp_max(
            len(rows) - 1
        )  # the row, read from its end
        chosen = rng.draw_uniform(keys[first], 9, 1) < self.fade  # the draw after those of `_drawn`
        return crops.lerp(crops[other], 0.25 * chosen[:, :, None, None])

    def color_noise_at(self, epoch: int) -> float:
        return (
            0.0
            if any(begin <= epoch < end for begin, end in self.color_noise_off)
            else self.color_noise
        )

    def center(self, images: Tensor) -> Tensor:
        """(n, size, size, 3) uint8 to its center crops, (n, 3, crop, crop) float32."""
        self._to(images.device)
        middle = torch.full((len(images),), self.border // 2, device=images.device)
        return self._finish(self._centered(images, middle, middle))

    def ten_views(self, images: Tensor) -> Tensor:
        """(n, size, size, 3) uint8 to (n · 10, 3, crop, crop) float32, a image's views side by side: the corners and
        the center, then their mirror images."""
        self._to(images.device)
        y, x = self.five_crops.repeat(len(images), 1).unbind(1)
        crops = len(self.five_crops)
        repeated = images.repeat_interleave(crops, 0)
        plain, mirrored = (
            self._centered(repeated, y, x, torch.full_like(y, flip, dtype=torch.bool)).unflatten(
                0, (-1, crops)
            )
            for flip in (False, True)
        )
        return self._finish(torch.cat([plain, mirrored], 1).flatten(0, 1))

    def _to(self, device: torch.device) -> None:
        """Once: a copy in every step would make the host wait for the device."""
        self.mean, self.color, self.five_crops = (
            x.to(device) for x in (self.mean, self.color, self.five_crops)
        )

    def _centered(
        self, images: Tensor, y: Tensor, x: Tensor, mirrored: Tensor | None = None
    ) -> Tensor:
        """The crops at (y, x), mirrored where asked, less the mean image, in float32."""
        rows = torch.arange(len(images), device=images.device)
        patches = _mirror(self._windows(images)[rows, y, x], mirrored).float()
        mean = self.mean
        if self.convention == "source":
            middle = self.border // 2
            return patches.sub_(mean[middle : middle + self.crop, middle : middle + self.crop])
        return patches.sub_(
            _mirror(self._windows(mean[None])[torch.zeros_like(rows), y, x], mirrored)
        )

    def _windows(self, images: Tensor) -> Tensor:
        """Every crop as a view: (n, border + 1, border + 1, crop, crop, 3), no bytes copied."""
        n, row, column, channel = images.stride()
        places = self.border + 1
        shape = (len(images), places, places, self.crop, self.crop, 3)
        return images.as_strided(shape, (n, row, column, row, column, channel))

    def _finish(self, x: Tensor, factor: float = 1.0) -> Tensor:
        """Scaled, with channels second for the net; the memory stays channels-last."""
        return x.mul_(factor * self.scale).permute(0, 3, 1, 2)


def _mirror(patches: Tensor, mirrored: Tensor | None) -> Tensor:
    return (
        patches
        if mirrored is None
        else torch.where(mirrored[:, None, None, None], patches.flip(2), patches)
    )


def normal(uniform: Tensor) -> Tensor:
    """(n, 2k) uniform draws to (n, k) normal ones, by Box and Muller."""
    first, second = uniform.chunk(2, 1)
    return (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)
