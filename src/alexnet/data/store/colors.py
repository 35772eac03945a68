"""The principal components of images' RGB values, for the color noise of §4.1."""

from typing import NamedTuple

import numpy as np

# Sums of 256 products of bytes stay below 2^24, up to which float32 counts exactly.
SUMMED = 256
SIDE_BY_SIDE = 4  # pixels that make one row of the matrix product, three times as fast as one


class Components(NamedTuple):
    """Of RGB values, 0-255."""

    mean: np.ndarray  # (3,)
    std: np.ndarray  # (3,) along each component
    vectors: np.ndarray  # (3, 3), the components in columns


def sum_color_products(pixels: np.ndarray) -> np.ndarray:
    """Σ pixel · pixelᵀ over an image's pixels, (3, 3) float64, exact."""
    columns = 3 * SIDE_BY_SIDE
    if pixels.size % (SUMMED * columns):
        flat = pixels.reshape(-1, 3).astype(np.float64)
        return flat.T @ flat
    blocks = pixels.reshape(-1, SUMMED, columns).astype(np.float32)
    products = (blocks.transpose(0, 2, 1) @ blocks).sum(0, dtype=np.float64)
    # Of the products of four pixels with four, those of each pixel with itself count.
    total: np.ndarray = np.einsum("iaib->ab", products.reshape(SIDE_BY_SIDE, 3, SIDE_BY_SIDE, 3))
    return total


def find_principal_components(total: np.ndarray, products: np.ndarray, images: int) -> Components:
    """From the sum of the images, (size, size, 3), and that of their `sum_color_products`."""
    pixels = images * total[..., 0].size
    mean = total.sum((0, 1)) / pixels
    covariance = products / pixels - np.outer(mean, mean)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return Components(mean, np.sqrt(eigenvalues.clip(0)), vectors)
