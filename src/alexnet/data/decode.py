"""A image's file to its square; separate_layers from the rest because torch takes seconds to import."""

import io
from contextlib import suppress

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # 179 million pixels


def decode(data: bytes | np.ndarray, size: int, resize: str, exif: bool) -> np.ndarray | str:
    """(size, size, 3) uint8 of an encoded image or of (height, width, 3) pixels, or what is wrong with it.

    The shorter side comes to `size`, then the center square is kept (§2). resize `bicubic` is antialiased, Pillow's
    pixels but for rounding; `area` averages when it shrinks and interpolates bicubically when it enlarges, as
    cuda-convnet2 did. exif turns the image as its camera says, which ImageNet's labels do not expect.
    """
    try:
        image = _pixels(data, exif)
    except Exception as error:  # Pillow's decoders raise whatever their format's errors are
        return " ".join(str(error).split()).split(", ", 2)[-1] or type(error).__name__
    height, width, _ = image.shape
    shorter = min(height, width)
    image = _center(
        image, min(height, 4 * shorter), min(width, 4 * shorter)
    )  # else a line would grow huge
    if shorter != size:
        image = _resized(image, size, "bicubic" if shorter < size else resize)
    return np.ascontiguousarray(_center(image, size, size))


def _center(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def _resized(image: np.ndarray, size: int, mode: str) -> np.ndarray:
    """In one call of torch, since threads queue for the interpreter's lock after each; as wide as torchvision makes it,
    or, if `mode` is area, as make-data did."""
    height, width, _ = image.shape
    shorter = min(height, width)
    batch = torch.from_numpy(image.reshape(1, height, width, 3).transpose(0, 3, 1, 2))
    if mode == "area":
        shape = [round(side * size / shorter) for side in (height, width)]
        resized = interpolate(batch.float(), shape, mode="area").round().to(torch.uint8)
    else:
        shape = [side * size // shorter for side in (height, width)]
        resized = interpolate(batch, shape, mode="bicubic", antialias=True)
    return resized.numpy()[0].transpose(1, 2, 0)


def _pixels(data: bytes | np.ndarray, exif: bool) -> np.ndarray:
    """(height, width, 3) uint8. simplejpeg decodes what it can, and Pillow the rest: both are libjpeg-turbo, but Pillow
    takes a third longer."""
    if isinstance(data, np.ndarray):
        return data
    if not data:
        raise ValueError("is empty")
    if data[:3] == b"\xff\xd8\xff" and not exif:
        with suppress(ValueError):  # it refuses what libjpeg only warns of
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            if colors == "YCbCr" and height * width < LARGEST:
                return simplejpeg.decode_jpeg(data, "RGB")
    with Image.open(
        io.BytesIO(data)
    ) as image:  # reads the header, and refuses more pixels than LARGEST
        if image.mode.startswith("I"):  # 16 bits
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, 2)
        upright = ImageOps.exif_transpose(image) if exif else image
        return np.array(upright.convert("RGB"))
