"""A picture's file to its pixels; apart from `prepare.py` because torchvision takes seconds to import."""

import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F


def decode(data: bytes, size: int) -> np.ndarray | str:
    """(size, size, 3) uint8 of an encoded picture, or what is wrong with it."""
    if not data:
        return "is empty"
    try:
        picture = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        return str(error).splitlines()[0].split(", ", 2)[-1]  # without torchvision's own file and line
    if picture.ndim == 4:
        picture = picture[0]  # an animation
    if picture.dtype != torch.uint8:
        picture = F.to_dtype(picture, torch.uint8, scale=True)  # 16 bits a channel
    if min(picture.shape[1:]) != size:
        picture = F.resize(picture, [size], F.InterpolationMode.BICUBIC, antialias=True)
    return F.center_crop(picture, [size, size]).permute(1, 2, 0).numpy()
