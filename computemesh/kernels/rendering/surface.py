"""How surfaces scatter light: the metallic-roughness model of glTF 2.0 (specification, appendix B).

Directions are in the frame of the shading normal (z along it) and point away from the surface.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from computemesh.kernels.rendering.vectors import Vec, dot, luminance, mix, normalize, where

MIN_ALPHA = 1e-3


class Surface(NamedTuple):
    """`diffuse` = base colour * (1 - metallic); `f0`, `f90`: reflectance at normal and grazing incidence;
    `alpha` = roughness squared (lanes,)."""

    diffuse: Vec
    f0: Vec
    f90: Array
    alpha: Array


def surface(base: Vec, metallic: Array, roughness: Array, specular: Array) -> Surface:
    """From the parameters of glTF and KHR_materials_specular (`specular` 0: a pure Lambert diffuser)."""
    white = Vec(specular, specular, specular)
    return Surface(
        base * (1 - metallic),
        mix(white * 0.04, base, metallic),
        specular + (1 - specular) * metallic,
        jnp.maximum(roughness * roughness, MIN_ALPHA),
    )


def _fresnel(s: Surface, cosine: Array) -> Vec:
    """C. Schlick 1994."""
    grazing = (1 - jnp.clip(cosine, 0, 1)) ** 5
    f90 = Vec(s.f90, s.f90, s.f90)
    return mix(s.f0, f90, grazing)


def _root(alpha: Array, cosine: Array) -> Array:
    return jnp.sqrt(alpha * alpha + (1 - alpha * alpha) * cosine * cosine)


def _distribution(alpha: Array, half: Vec) -> Array:
    """Trowbridge-Reitz (GGX) density of microfacet normals."""
    square = alpha * alpha
    # sin^2 from x and y: 1 - z^2 loses every digit where a mirror-like lobe has its peak.
    t = square * half.z * half.z + half.x * half.x + half.y * half.y
    return square / (math.pi * t * t)


def _specular_share(s: Surface, out: Vec) -> Array:
    """Probability of sampling the specular lobe: its part of the reflected luminance seen from `out`."""
    fresnel = luminance(_fresnel(s, out.z))
    diffuse = luminance(s.diffuse) * (1 - fresnel)
    share = jnp.clip(fresnel / jnp.maximum(fresnel + diffuse, 1e-9), 0.1, 0.9)
    return jnp.where(fresnel <= 0, 0.0, jnp.where(diffuse <= 0, 1.0, share))


def evaluate(s: Surface, out: Vec, into: Vec) -> tuple[Vec, Array]:
    """(brdf * cosine of `into`, density of sampling `into` per solid angle); zero below the surface."""
    above = (into.z > 0) & (out.z > 0)
    half = normalize(out + into)
    fresnel = _fresnel(s, dot(out, half))
    density = _distribution(s.alpha, half)
    # Height-correlated Smith masking-shadowing (E. Heitz, JCGT 3:2, 2014), with the 4 cosines cancelled.
    to_out, to_into = _root(s.alpha, out.z), _root(s.alpha, into.z)
    visibility = 0.5 / jnp.maximum(into.z * to_out + out.z * to_into, 1e-9)
    ones = Vec(*(jnp.ones_like(out.z),) * 3)
    value = fresnel * (density * visibility) + (ones - fresnel) * s.diffuse * (1 / math.pi)
    share = _specular_share(s, out)
    of_specular = density / (2 * (out.z + to_out))  # G1(out) * D / (4 * cosine)
    pdf = share * of_specular + (1 - share) * into.z / math.pi
    zero = jnp.zeros_like(out.z)
    return where(above, value * into.z, Vec(zero, zero, zero)), jnp.where(above, pdf, 0.0)


def sample(s: Surface, out: Vec, u1: Array, u2: Array, lobe: Array) -> Vec:
    """A direction with the density that `evaluate` gives; u1, u2, lobe uniform in [0, 1)."""
    angle = 2 * math.pi * u1
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    radius = jnp.sqrt(u2)
    diffuse = Vec(radius * cosine, radius * sine, jnp.sqrt(1 - u2))
    # Visible normals of GGX by spherical caps (J. Dupuy and A. Benyoub, CGF 42:8, 2023).
    stretched = normalize(Vec(out.x * s.alpha, out.y * s.alpha, out.z))
    z = (1 - u2) * (1 + stretched.z) - stretched.z
    flat = jnp.sqrt(jnp.clip(1 - z * z, 0, 1))
    cap = Vec(flat * cosine, flat * sine, z) + stretched
    normal = normalize(Vec(cap.x * s.alpha, cap.y * s.alpha, jnp.maximum(cap.z, 0)))
    mirrored = normal * (2 * dot(out, normal)) - out
    return where(lobe < _specular_share(s, out), mirrored, diffuse)
