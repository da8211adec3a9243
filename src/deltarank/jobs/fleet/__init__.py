"""The `fleet` job: many finetunes of one base, each as `compare` measures it, while the base is read once."""

from deltarank.jobs.fleet.options import FleetKeywords, FleetOptions

__all__ = ["FleetKeywords", "FleetOptions"]
