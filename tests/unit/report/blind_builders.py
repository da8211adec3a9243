"""Invented scores of blind tests."""

from deltarank.results import BlindScore, Caught, Interval, Preferred, Told, VoterScore


def voter(name: str, **changes) -> VoterScore:
    told = Told(17, 24, Interval(17 / 24, 0.41, 0.91), 2.5, 0.2, 0.032)
    liked = Preferred(7, 3, 2, Interval(0.67, 0.3, 0.9), 1.2, 0.8)
    shown = {"told": told, "preferred": liked, "sure": Caught(3, 3), "same_model": Caught(1, 3), **changes}
    return VoterScore(name=name, voter="0" * 32, asked=42, votes=42, **shown)


def score(*voters: VoterScore, **changes) -> BlindScore:
    shown = {"sentences": ("17 of 24 right.",), "together": None, "best": None, "candidate": "rank 64", **changes}
    return BlindScore(
        test="a",
        key_sha256="f" * 64,
        reference="the finetune",
        voters=voters,
        created="2026-11-29T00:00:00+00:00",
        tool_version="0.1.0",
        **shown,
    )
