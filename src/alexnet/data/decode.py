"""A picture's file to its pixels and back; apart from the rest because torchvision takes seconds to import."""

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image, encode_jpeg
from torchvision.transforms.v2 import functional as F

try:
    import simplejpeg  # the same pixels, a sixth faster
except ImportError:
    simplejpeg = None


def decode(data: bytes | np.ndarray, size: int, resize: str, exif: bool) -> np.ndarray | str:
    """(size, size, 3) uint8 of an encoded picture or of (height, width, 3) pixels, or what is wrong with it.

    The shorter side comes to `size`, then the centre square is kept (§2). resize `bicubic` is antialiased, Pillow's
    pixels; `area` averages when it shrinks and interpolates bicubically when it enlarges, as cuda-convnet2 did.
    exif turns the picture as its camera says, which ImageNet's labels do not expect.
    """
    if isinstance(data, np.ndarray):
        picture = torch.from_numpy(np.ascontiguousarray(data)).permute(2, 0, 1)
    elif not data:
        return "is empty"
    else:
        try:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            picture = decode_image(encoded, ImageReadMode.RGB, apply_exif_orientation=exif)
        except (RuntimeError, ValueError) as error:
            return str(error).splitlines()[0].split(", ", 2)[-1]  # without torchvision's own file and line
    if picture.ndim == 4:
        picture = picture[0]  # an animation
    if picture.dtype != torch.uint8:
        picture = F.to_dtype(picture, torch.uint8, scale=True)  # 16 bits a channel
    shorter = min(picture.shape[1:])
    if shorter > size and resize == "area":
        shape = [round(side * size / shorter) for side in picture.shape[1:]]
        picture = torch.nn.functional.interpolate(picture[None].float(), shape, mode="area")[0].round().to(torch.uint8)
    elif shorter != size:
        picture = F.resize(picture, [size], F.InterpolationMode.BICUBIC, antialias=True)
    return F.center_crop(picture, [size, size]).permute(1, 2, 0).contiguous().numpy()


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
