"""A picture's file to its pixels and back; apart from the rest because torchvision takes seconds to import."""

import io
from contextlib import suppress

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image, encode_jpeg
from torchvision.transforms.v2 import functional as F

try:
    import simplejpeg  # libjpeg-turbo with less around it
except ImportError:
    simplejpeg = None

LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # 179 million pixels


def decode(data: bytes | np.ndarray, size: int, resize: str, exif: bool) -> np.ndarray | str:
    """(size, size, 3) uint8 of an encoded picture or of (height, width, 3) pixels, or what is wrong with it.

    The shorter side comes to `size`, then the centre square is kept (§2). resize `bicubic` is antialiased, Pillow's
    pixels; `area` averages when it shrinks and interpolates bicubically when it enlarges, as cuda-convnet2 did.
    exif turns the picture as its camera says, which ImageNet's labels do not expect.
    """
    try:
        picture = _pixels(data, exif)
    except Exception as error:  # Pillow's decoders raise whatever their format's errors are
        return " ".join(str(error).split()).split(", ", 2)[-1] or type(error).__name__
    shorter = min(picture.shape[1:])
    if max(picture.shape[1:]) > 4 * shorter:  # else a line would grow huge
        picture = F.center_crop(picture, [min(side, 4 * shorter) for side in picture.shape[1:]])
    if shorter > size and resize == "area":
        shape = [round(side * size / shorter) for side in picture.shape[1:]]
        picture = torch.nn.functional.interpolate(picture[None].float(), shape, mode="area")[0].round().to(torch.uint8)
    elif shorter != size:
        picture = F.resize(picture, [size], F.InterpolationMode.BICUBIC, antialias=True)
    top, left = (round((side - size) / 2) for side in picture.shape[1:])
    return picture[:, top : top + size, left : left + size].permute(1, 2, 0).contiguous().numpy()


def _pixels(data: bytes | np.ndarray, exif: bool) -> torch.Tensor:
    """(3, height, width) uint8. simplejpeg decodes what it can, torchvision other JPEGs, to the same pixels, and Pillow
    the rest: torchvision 0.29 crashes on a torn PNG."""
    if isinstance(data, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(data)).permute(2, 0, 1)
    if not data:
        raise ValueError("is empty")
    if simplejpeg and data[:3] == b"\xff\xd8\xff" and not exif:
        with suppress(ValueError):  # it refuses what libjpeg only warns of
            height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
            if colors == "YCbCr" and height * width < LARGEST:
                return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1)
    with Image.open(io.BytesIO(data)) as picture:  # reads the header, and refuses more pixels than LARGEST
        if picture.format == "JPEG":
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return decode_image(encoded, ImageReadMode.RGB, apply_exif_orientation=exif)
        if picture.mode.startswith("I"):  # 16 bits
            return torch.from_numpy(np.asarray(picture) >> 8).to(torch.uint8).expand(3, -1, -1)
        upright = ImageOps.exif_transpose(picture) if exif else picture
        return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)


def to_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """(height, width, 3) uint8 as a JPEG file, colours at half resolution."""
    return encode_jpeg(torch.from_numpy(pixels).permute(2, 0, 1), quality).numpy().tobytes()


def decode_jpeg(data: np.ndarray, out: np.ndarray) -> None:
    """A JPEG file's pixels into `out`, (height, width, 3) uint8."""
    if simplejpeg:
        simplejpeg.decode_jpeg(data, "RGB", buffer=out)
    else:
        picture = decode_image(torch.from_numpy(np.array(data)), ImageReadMode.RGB)
        out[:] = picture.permute(1, 2, 0).numpy()
