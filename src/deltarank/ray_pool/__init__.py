"""A pool of workers on a Ray cluster, for `--ray` and `deltarank.on_ray`. Ray is imported when it is first used."""

from deltarank.ray_pool.cluster import on_ray

__all__ = ["on_ray"]
