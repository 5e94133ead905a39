"""Pictures as files: what a person looks at, and the data behind it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np


def neutral(radiance: np.ndarray) -> np.ndarray:
    """Khronos PBR Neutral tone mapping (https://github.com/KhronosGroup/ToneMapping): linear (..., 3) to 0..1.

    Base colours keep their values, only highlights are compressed and desaturated.
    """
    start, desaturation = 0.8 - 0.04, 0.15
    colour = np.maximum(np.nan_to_num(radiance.astype(np.float32), posinf=1e6), 0)
    least = colour.min(axis=-1, keepdims=True)
    colour = colour - np.where(least < 0.08, least - 6.25 * least * least, 0.04)
    peak = colour.max(axis=-1, keepdims=True)
    compressed = 1 - (1 - start) ** 2 / (np.maximum(peak, start) + 1 - 2 * start)
    grey = 1 - 1 / (desaturation * (np.maximum(peak, start) - compressed) + 1)
    bright = colour * (compressed / np.maximum(peak, 1e-9))
    return np.where(peak < start, colour, bright + (compressed - bright) * grey)


def display(radiance: np.ndarray) -> np.ndarray:
    """Linear radiance (h, w, 3) as 8-bit sRGB (IEC 61966-2-1), tone mapped."""
    linear = np.clip(neutral(radiance), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255 + 0.5).astype(np.uint8)


def png(radiance: np.ndarray) -> bytes:
    """A tone-mapped PNG of (h, w, 3) linear radiance."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(display(radiance)).save(file, "PNG", optimize=True)
    return file.getvalue()


def webp(frames: Sequence[np.ndarray], milliseconds: int = 42) -> bytes:
    """An animated WebP of tone-mapped frames that repeats for ever."""
    from PIL import Image

    first, *rest = (Image.fromarray(display(frame)) for frame in frames)
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=milliseconds, loop=0, quality=88, method=4)
    return file.getvalue()


def exr(radiance: np.ndarray) -> bytes:
    """An OpenEXR file of (h, w, 3) linear Rec. 709 radiance, every bit of its float32."""
    import OpenEXR

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    stream = io.BytesIO()
    channels = {"RGB": np.ascontiguousarray(radiance, dtype=np.float32)}
    with OpenEXR.File(header, channels) as file:
        file.write(stream)
    return stream.getvalue()
