"""The colours of a set of pictures, for the noise of §4.1."""

import numpy as np

BAND = 16 * 3072  # bytes of pixels


def color_products(pixels: np.ndarray) -> np.ndarray:
    """Σ pixel · pixelᵀ, (3, 3), exact: 256 products of bytes are below 2^24, which float32 holds. Four pixels side by
    side make a matrix product three times as fast as one; a band at a time stays in the cache."""
    values, products = pixels.reshape(-1), np.zeros((12, 12))
    for begin in range(0, values.size, BAND):
        band = values[begin : begin + BAND]
        flat = np.zeros((-(-band.size // 3072), 256, 12), np.float32)
        flat.reshape(-1)[: band.size] = band
        products += np.matmul(flat.transpose(0, 2, 1), flat).sum(0, dtype=np.float64)
    return np.einsum("iaib->ab", products.reshape(4, 3, 4, 3))


def principal_components(
    total: np.ndarray, products: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of the channels (3,), standard deviations along the principal components (3,), and these in columns (3, 3),
    from the sum of `count` pictures and the sum of their `color_products`."""
    pixels = count * total[..., 0].size
    mean = total.sum((0, 1)) / pixels
    eigenvalues, vectors = np.linalg.eigh(products / pixels - np.outer(mean, mean))
    return mean, np.sqrt(eigenvalues.clip(0)), vectors
