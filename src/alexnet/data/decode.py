"""An image file to a square of pixels: decode it, resize its shorter side, crop the center (§2)."""

import io
from contextlib import suppress
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

# bicubic: antialiased, Pillow's pixels up to rounding; area: means, as cuda-convnet2 made them.
Resize = Literal["bicubic", "area"]
Pixels = NDArray[np.uint8]

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # 179 million, the most that Pillow decodes
MAX_ASPECT = 4  # of the longer side to the shorter one


class UnreadableImageError(ValueError):
    """Says in few words why an image can't be decoded."""


def decode(data: bytes | Pixels, size: int, resize: Resize, *, exif: bool) -> Pixels:
    """(size, size, 3) pixels of an image file, or of the (height, width, 3) pixels of an image.

    The shorter side is resized to `size`, then the center square is cropped (§2). `area` applies to
    images that shrink; those that are enlarged are always bicubic. `exif` turns the image as its
    camera says, which ImageNet's labels do not expect. Raises UnreadableImageError.
    """
    image = data if isinstance(data, np.ndarray) else _decode_file(data, exif)
    height, width, _ = image.shape
    shorter = min(height, width)
    longest = MAX_ASPECT * shorter  # a longer side would become huge when a line is enlarged
    image = _crop_center(image, min(height, longest), min(width, longest))
    if shorter < size:
        image = _resize_shorter_side(image, size, "bicubic")
    elif shorter > size:
        image = _resize_shorter_side(image, size, resize)
    return np.ascontiguousarray(_crop_center(image, size, size))


def _decode_file(data: bytes, exif: bool) -> Pixels:
    """(height, width, 3) pixels.

    Both decoders are libjpeg-turbo, but Pillow takes a third longer, so it decodes what simplejpeg
    can't.
    """
    if not data:
        raise UnreadableImageError("is empty")
    try:
        pixels = None if exif else _decode_jpeg(data)
        return _decode_with_pillow(data, exif) if pixels is None else pixels
    except UnidentifiedImageError as error:  # whose message has an address in memory
        raise UnreadableImageError("is not an image of a known format") from error
    except Exception as error:  # each of Pillow's formats raises errors of its own
        reason = " ".join(str(error).split())
        raise UnreadableImageError(reason or type(error).__name__) from error


def _decode_jpeg(data: bytes) -> Pixels | None:
    """None for what is not a plain JPEG in color."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    with suppress(ValueError):  # simplejpeg refuses what libjpeg only warns of
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors == "YCbCr" and height * width < MAX_PIXELS:
            pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
            return pixels
    return None


def _decode_with_pillow(data: bytes, exif: bool) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:  # refuses images above MAX_PIXELS by their header
        if image.mode.startswith("I"):  # 16 bits
            gray = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(gray[..., None], 3, axis=2)
        upright = ImageOps.exif_transpose(image) if exif else image
        return np.array(upright.convert("RGB"))


def _crop_center(image: Pixels, height: int, width: int) -> Pixels:
    top = round((image.shape[0] - height) / 2)
    left = round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def _resize_shorter_side(image: Pixels, size: int, resize: Resize) -> Pixels:
    """By torch in one call, since threads queue for the interpreter's lock after each call.

    The longer side is rounded as by torchvision, or, for `area`, as by cuda-convnet2's make-data.
    """
    import torch  # takes seconds, in which a wrong source has been reported
    from torch.nn.functional import interpolate

    height, width, _ = image.shape
    shorter = min(height, width)
    batch = torch.from_numpy(image.reshape(1, height, width, 3).transpose(0, 3, 1, 2))
    if resize == "area":
        shape = (round(height * size / shorter), round(width * size / shorter))
        resized = interpolate(batch.float(), shape, mode="area").round().to(torch.uint8)
    else:
        shape = (height * size // shorter, width * size // shorter)
        resized = interpolate(batch, shape, mode="bicubic", antialias=True)
    square: Pixels = resized.numpy()[0].transpose(1, 2, 0)
    return square
