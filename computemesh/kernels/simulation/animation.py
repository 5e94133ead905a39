"""Animated WebP of a run: fields as coloured grids, everything else as points with trails, drawn by Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from computemesh.kernels.simulation.catalog import box_edge
from computemesh.kernels.simulation.panels import field_of
from computemesh.kernels.simulation.run import Run

MAX_FRAMES = 120
SIDE = 480
OVER = 2  # points are drawn at twice the size and scaled down: smooth edges
TRAIL = 8
FRAME_MS = 60
BACK = (13, 17, 23)


def draw(run: Run) -> bytes:
    """The frames there are, at most 120 of them, 60 ms each, the last held for a second."""
    chosen = np.unique(np.linspace(0, run.moments - 1, min(run.moments, MAX_FRAMES)).round().astype(int))
    pictures = list(_fields(run, chosen) if "width" in run.shape else _points(run, chosen))
    out = io.BytesIO()
    durations = [FRAME_MS] * (len(pictures) - 1) + [1000]
    pictures[0].save(
        out, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=82, method=2
    )
    return out.getvalue()


def _fields(run: Run, chosen: np.ndarray) -> Iterator[Any]:
    """Up to four members side by side, coloured as in the plot."""
    from matplotlib import colormaps
    from PIL import Image

    gray_scott = run.model.system == "reaction_diffusion"
    map_, low, high = ("magma", 0.0, 0.4) if gray_scott else ("RdBu_r", -4.0, 4.0)
    colours = colormaps[map_].with_extremes(bad=(0.25, 0.25, 0.25, 1))
    members = run.spread(4)
    columns = 2 if gray_scott and len(members) > 1 else 1
    rows = -(-len(members) // columns)
    wide, high_ = run.shape["width"] * columns, run.shape["height"] * rows
    zoom = max(1, round(min(2 * SIDE / wide, 1.5 * SIDE / high_)))
    histories = [run.history(member) for member in members]
    for frame in chosen:
        sheet = Image.new("RGB", (wide * zoom, high_ * zoom), BACK)
        for i, (member, history) in enumerate(zip(members, histories, strict=True)):
            grid = np.ma.masked_invalid((field_of(run, member, history[frame]) - low) / (high - low))
            pixels = (colours(grid)[::-1, :, :3] * 255).astype(np.uint8)
            tile = Image.fromarray(pixels).resize(
                (run.shape["width"] * zoom, run.shape["height"] * zoom), Image.Resampling.BICUBIC
            )
            sheet.paste(tile, (i % columns * tile.width, i // columns * tile.height))
        yield sheet


def _points(run: Run, chosen: np.ndarray) -> Iterator[Any]:
    from matplotlib import colormaps
    from PIL import Image, ImageDraw

    paths, box = _paths(run)
    low, size = box
    if run.model.system == "lennard_jones":
        trail, radius = 0, SIDE * OVER / size / 2 * 0.9
    else:
        trail = TRAIL
        radius = OVER * (2.5 if paths.shape[1] > 40 else 4.0)
    shades = colormaps["plasma"](np.linspace(0.15, 0.95, paths.shape[1]))[:, :3]
    for frame in chosen:
        sheet = Image.new("RGB", (SIDE * OVER, SIDE * OVER), BACK)
        pen = ImageDraw.Draw(sheet, "RGBA")
        places = (paths[: frame + 1, :, :2] - low) / size * SIDE * OVER
        places[..., 1] = SIDE * OVER - places[..., 1]
        for point in np.argsort(paths[frame, :, 2]):
            line = places[max(0, frame - trail) :, point]
            if not np.isfinite(line).all():
                continue
            colour = tuple(int(255 * part) for part in shades[point])
            depth = 1.0 if trail else 0.45 + 0.55 * float(np.clip((paths[frame, point, 2] - low[0]) / size, 0, 1))
            fill = tuple(int(part * depth) for part in colour)
            for age in range(1, len(line)):
                pen.line([*line[age - 1], *line[age]], fill=(*fill, 30 + 190 * age // len(line)), width=OVER)
            x, y = line[-1]
            edge = None if trail else (0, 0, 0)
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill, outline=edge)
        yield sheet.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _paths(run: Run) -> tuple[np.ndarray, tuple[np.ndarray, float]]:
    """((moments, points, 3): across, up, depth; (lower corner (2,), edge) of the square shown)."""
    if run.model.system == "lennard_jones":
        edge = box_edge(run.named(0)["density"], run.shape)
        return run.history(0)[:, :3].swapaxes(1, 2) % edge, (np.zeros(2), edge)
    if run.model.system == "nbody":
        paths = run.history(0)[:, :3].swapaxes(1, 2)
        share = 95 if paths.shape[1] > 16 else 100
        reach = float(np.nanpercentile(np.abs(paths[..., :2]), share)) * 1.3 or 1.0
        return paths, (np.full(2, -reach), 2 * reach)
    across = (0, 2) if run.model.variant == "lorenz" else (0, 1)
    histories = np.stack([run.history(member) for member in run.spread(60)], 1)[..., list(across)]
    finite = histories[np.isfinite(histories).all((1, 2))]
    lowest, highest = finite.min((0, 1)), finite.max((0, 1))
    flat = (histories - lowest) / (highest - lowest).clip(1e-12)
    paths = np.concatenate([flat, np.zeros((*flat.shape[:2], 1))], 2)
    return paths, (np.full(2, -0.06), 1.12)


def contact_sheet(webp: bytes, columns: int = 4, count: int = 8) -> bytes:
    """`count` frames of an animation in a grid, as a PNG: to look at where nothing plays it."""
    from PIL import Image, ImageSequence

    frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(io.BytesIO(webp)))]
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]
    wide, high = chosen[0].size
    sheet = Image.new("RGB", (wide * columns, high * math.ceil(len(chosen) / columns)), BACK)
    for i, frame in enumerate(chosen):
        sheet.paste(frame, (i % columns * wide, i // columns * high))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()
