"""A path tracer over triangles.

`bvh`, `scene`, `shapes`, `gltf` and `picture` are numpy; `trace`, `surface`, `vectors` and `pathtracer` import JAX.
"""
