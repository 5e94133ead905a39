"""States at time 0, and what every true state keeps. Numpy on the host, so that a start is one draw everywhere.

Random numbers are Philox's (Salmon et al., SC 2011), keyed by the seed and the replicate: replicate r starts from
the same draw at every point of a sweep, which is what comparisons want (common random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from computemesh.kernels.npz import read_arrays, refused
from computemesh.kernels.simulation.catalog import Model, Shape, box_edge
from computemesh.trust.digest import tagged

Array = np.ndarray
MAX_FILE_BYTES = 2**26

# Mean elements at J2000 (Standish, JPL): distance in AU, mass in solar masses, mean longitude and inclination in
# degrees; the orbits start circular.
PLANETS = (
    (0.38710, 1.660e-7, 252.25, 7.005), (0.72334, 2.448e-6, 181.98, 3.395), (1.00000, 3.003e-6, 100.46, 0.000),
    (1.52371, 3.227e-7, -4.55, 1.850), (5.20289, 9.548e-4, 34.40, 1.304), (9.53668, 2.859e-4, 49.95, 2.486),
    (19.18916, 4.366e-5, 313.24, 0.773), (30.06992, 5.151e-5, -55.12, 1.770),
)  # fmt: skip
WEIGHTS = np.array([4 / 9] + [1 / 9] * 4 + [1 / 36] * 4)
VELOCITIES = np.array([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1)])


def draw_key(seed: bytes, replicate: int) -> bytes:
    """32 bytes that all randomness of a replicate comes from."""
    return tagged("computemesh.v1/simulation/replicate", seed + replicate.to_bytes(4, "big"))


def start(model: Model, shape: Shape, values: Mapping[str, float], seed: bytes, replicate: int) -> Array:
    """The state at time 0, (width,) in the model's dtype."""
    if model.system == "option_pricing":
        return np.zeros(model.width(shape), model.dtype)
    key = int.from_bytes(draw_key(seed, replicate)[:16], "big")
    draw = np.random.Generator(np.random.Philox(key=key))
    if model.system == "ode":
        at = np.array([values[f"{name.lower()}0"] for name in model.variables])
        found = at + values["spread"] * draw.standard_normal(len(at))
    elif model.system == "nbody":
        found = {"plummer": _plummer, "figure_eight": _figure_eight, "solar_system": _solar_system}[model.variant](
            shape, values, draw
        )
    else:
        found = {"lennard_jones": _crystal, "reaction_diffusion": _patches, "lattice_boltzmann": _stream}[model.system](
            shape, values, draw
        )
    return np.ascontiguousarray(found, model.dtype).reshape(-1)


def arrays(model: Model, shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and shape of each array of a file to start from; empty where a model takes none."""
    if model.system == "reaction_diffusion":
        return dict.fromkeys(("u", "v"), (shape["height"], shape["width"]))
    if model.system == "lennard_jones" or model.variant == "plummer":
        count = model.width(shape) // model.fields
        each = {"position": (count, 3), "velocity": (count, 3)}
        return each | ({"mass": (count,)} if model.system == "nbody" else {})
    return {}


def from_file(model: Model, shape: Shape, path: Path) -> Array:
    """The state at time 0, (width,) in the model's dtype, from an .npz with what `arrays` names. Raises
    InvalidArgument on a file that is too large, or arrays that are missing, of another shape, not floating-point, not
    finite, or that no run can mean."""
    wanted = arrays(model, shape)
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise refused("start", f"the file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
    most = 8 * max(math.prod(extent) for extent in wanted.values())
    found = read_arrays(path, tuple(wanted), "start", most, "f")
    for name, extent in wanted.items():
        if found[name].shape != extent:
            given = ", ".join(f"{key} {value}" for key, value in shape.items())
            text = f"array {name!r} has shape {list(found[name].shape)[:8]}; parameters {given} mean {list(extent)}"
            raise refused("start", text)
        with np.errstate(over="ignore"):
            found[name] = found[name].astype(model.dtype)
        if not (good := np.isfinite(found[name])).all():
            text = f"array {name!r} holds NaN, infinity or what {model.dtype} cannot hold"
            raise refused("start", f"{text}, first at {np.argwhere(~good)[0].tolist()}")
    if "mass" in found and (found["mass"] <= 0).any():
        raise refused("start", f"array 'mass' holds {found['mass'].min():g}; a mass is above 0")
    parts = [one.T if one.ndim == 2 and one.shape[1:] == (3,) and "position" in found else one
             for one in found.values()]  # fmt: skip
    return np.concatenate([np.ravel(one) for one in parts])


def _plummer(shape: Shape, values: Mapping[str, float], draw: np.random.Generator) -> Array:
    """Aarseth, Henon and Wielen (1974): positions by inversion, speeds by rejection; scale length 3 pi / 16, the
    virial radius being 1. Centred, at rest as a whole.
    """
    n, scale = shape["bodies"], 3 * math.pi / 16
    radius = scale / np.sqrt(draw.uniform(0.001, 0.999, n) ** (-2 / 3) - 1)
    speed = np.empty(n)
    for i in range(n):
        q, g = draw.uniform(), draw.uniform(0, 0.1)
        while g > q * q * (1 - q * q) ** 3.5:
            q, g = draw.uniform(), draw.uniform(0, 0.1)
        speed[i] = q
    speed *= math.sqrt(2 * values["gravity"]) * (radius**2 + scale**2) ** -0.25
    place, motion = (_directions(draw, n) * size for size in (radius, speed))
    place -= place.mean(1, keepdims=True)
    motion -= motion.mean(1, keepdims=True)
    return np.concatenate([place, motion, np.full((1, n), 1 / n)])


def _directions(draw: np.random.Generator, n: int) -> Array:
    z, angle = draw.uniform(-1, 1, n), draw.uniform(0, 2 * math.pi, n)
    flat = np.sqrt(1 - z * z)
    return np.stack([flat * np.cos(angle), flat * np.sin(angle), z])


def _figure_eight(shape: Shape, values: Mapping[str, float], draw: np.random.Generator) -> Array:
    """Chenciner and Montgomery (2000), with Simo's digits; period 6.3259 at G = 1."""
    x = np.array([[0.97000436, -0.97000436, 0.0], [-0.24308753, 0.24308753, 0.0], [0.0, 0.0, 0.0]])
    u, v = -0.93240737, -0.86473146
    motion = np.array([[-u / 2, -u / 2, u], [-v / 2, -v / 2, v], [0.0, 0.0, 0.0]]) * math.sqrt(values["gravity"])
    return np.concatenate([x + values["spread"] * draw.standard_normal((3, 3)), motion, np.ones((1, 3))])


def _solar_system(shape: Shape, values: Mapping[str, float], draw: np.random.Generator) -> Array:
    """Circular orbits at mean longitude and inclination, seen from the centre of mass."""
    distance, mass, longitude, tilt = (np.array(row) for row in zip(*PLANETS, strict=True))
    angle, tilt = np.radians(longitude), np.radians(tilt)
    speed = np.sqrt(values["gravity"] * (1 + mass) / distance)
    place = distance * np.stack([np.cos(angle), np.sin(angle) * np.cos(tilt), np.sin(angle) * np.sin(tilt)])
    motion = speed * np.stack([-np.sin(angle), np.cos(angle) * np.cos(tilt), np.cos(angle) * np.sin(tilt)])
    place = np.concatenate([np.zeros((3, 1)), place + values["spread"] * draw.standard_normal((3, 8))], 1)
    motion, mass = np.concatenate([np.zeros((3, 1)), motion], 1), np.concatenate([[1.0], mass])
    for each in (place, motion):
        each -= (mass * each).sum(1, keepdims=True) / mass.sum()
    return np.concatenate([place, motion, mass[None]])


def _crystal(shape: Shape, values: Mapping[str, float], draw: np.random.Generator) -> Array:
    """A face-centred cubic crystal with velocities of exactly the temperature and no momentum."""
    cells = shape["cells"]
    corner = np.array([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)])
    grid = np.stack(np.meshgrid(*[np.arange(cells)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    place = (grid + corner + 0.25).reshape(-1, 3).T * (box_edge(values["density"], shape) / cells)
    motion = draw.standard_normal(place.shape)
    motion -= motion.mean(1, keepdims=True)
    motion *= math.sqrt(values["temperature"] * (place.size - 3) / (motion**2).sum())
    return np.concatenate([place, motion])


def _patches(shape: Shape, values: Mapping[str, float], draw: np.random.Generator) -> Array:
    """u = 1, v = 0 but for squares of u = 1/2, v = 1/4 (Pearson 1993) and a hundredth of noise."""
    height, width = shape["height"], shape["width"]
    grid = np.stack([np.ones((height, width)), np.zeros((height, width))])
    edge = max(4, min(height, width) // 20)
    for _ in range(shape["patches"]):
        row, column = draw.integers(height), draw.integers(width)
        rows, columns = (row + np.arange(edge)) % height, (column + np.arange(edge)) % width
        grid[0][np.ix_(rows, columns)], grid[1][np.ix_(rows, columns)] = 0.5, 0.25
    return np.clip(grid + 0.01 * draw.uniform(-1, 1, grid.shape), 0, 1)


def _stream(shape: Shape, values: Mapping[str, float], draw: np.random.Generator) -> Array:
    """Uniform flow at density 1 and a small random slope that lets the wake choose its side. Kept is the
    deviation from rest, h_i = f_i - w_i, whose sums round far less than f's (Skordos 1993).
    """
    height, width = shape["height"], shape["width"]
    rows, columns = np.mgrid[:height, :width]
    phase = 2 * math.pi * draw.uniform(size=2)
    bump = np.cos(2 * math.pi * columns / width + phase[0]) * np.cos(2 * math.pi * rows / height + phase[1])
    motion = values["inflow"] * np.stack([np.ones((height, width)), 0.05 * bump])
    along = np.einsum("id,dhw->ihw", VELOCITIES, motion)
    found: Array = WEIGHTS[:, None, None] * (3 * along + 4.5 * along**2 - 1.5 * (motion**2).sum(0))
    return found
