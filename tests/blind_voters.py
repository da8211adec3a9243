"""Texts for blind tests, and people who vote: files as the page exports them."""

import base64
import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from deltarank.results import BlindKey, KeyPair, PairKind

WORDS = [
    "old",
    "harbour",
    "light",
    "river",
    "stone",
    "went",
    "quickly",
    "toward",
    "morning",
    "and",
    "nobody",
    "counted",
    "silver",
    "boats",
    "under",
    "grey",
    "rain",
    "while",
    "children",
    "sang",
    "about",
    "distant",
    "mountains",
    "because",
    "winter",
    "had",
    "ended",
    "before",
    "anyone",
    "noticed",
]

Answer = Callable[[KeyPair, int], tuple[str, int | None]]
"""From a pair and the number of the text that stands as A: the choice and the confidence."""


def some_text(numbers: random.Random, words: int = 40) -> str:
    return " ".join(numbers.choice(WORDS) for _ in range(words)).capitalize() + "."


def write_answers(path: Path, prompts: int = 24, answers: int = 4, *, seed: int = 0, **more: str) -> Path:
    """A file of answers; another seed writes other texts to the same prompts."""
    numbers = random.Random(seed)
    lines = [
        {"prompt": f"Prompt {i}", "answer": some_text(numbers), **more} for i in range(prompts) for _ in range(answers)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def dealt(folder: Path) -> list[dict]:
    """The pairs of a page, unsealed by the definition in docs/blind.md, with what the key says of them."""
    page = (folder / "vote.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    key, pairs = BlindKey.load(folder), []
    for pair in data["pairs"]:
        sealed = base64.b64decode(pair["sealed"])
        stream = b"".join(
            hashlib.sha256(f"{data['test']}:{pair['id']}:{i}".encode()).digest() for i in range(len(sealed) // 32 + 1)
        )
        texts = json.loads(bytes(x ^ y for x, y in zip(sealed, stream, strict=False)))
        pairs.append({**texts, "key": key.pair[pair["id"]]})
    return pairs


def order_of(key: BlindKey, voter: str) -> list[tuple[KeyPair, int]]:
    """The pairs in a voter's order, with the number of the text that stands as A, as docs/blind.md defines them."""

    def shuffled(items: Sequence[object], what: str) -> list:
        result = list(items)
        for i in reversed(range(1, len(result))):
            j = int(hashlib.sha256(f"{voter}:{what}:{i}".encode()).hexdigest()[:8], 16) % (i + 1)
            result[i], result[j] = result[j], result[i]
        return result

    screens = []
    for question in ("abx", "preference"):
        pairs = [pair for pair in key.pairs if pair.question == question]
        sides = shuffled([1, 2] * (len(pairs) // 2) + [1] * (len(pairs) % 2), f"{question}:sides")
        screens += list(zip(shuffled(pairs, f"{question}:order"), sides, strict=True))
    return screens


def export(folder: Path, answer: Answer, *, voter: int = 1, name: str = "", most: int | None = None) -> Path:
    """The votes of a person on the test in `folder`, with the checksum that the page would give them."""
    key, identity = BlindKey.load(folder), f"{voter:032x}"
    votes = []
    for pair, a in order_of(key, identity)[:most]:
        choice, confidence = answer(pair, a)
        votes.append({"pair": pair.id, "a": a, "choice": choice, "confidence": confidence})
    return write_votes(
        folder / f"votes-{voter}.json",
        format_version=1,
        test=key.test,
        key_sha256=hashlib.sha256((folder / "key.json").read_bytes()).hexdigest(),
        voter=identity,
        name=name,
        started=f"2026-11-29T10:{voter // 60:02}:{voter % 60:02}.000Z",
        votes=votes,
    )


def write_votes(path: Path, **content: object) -> Path:
    plain = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    checksum = hashlib.sha256(plain.encode()).hexdigest()
    path.write_text(json.dumps({**content, "checksum": checksum}, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def right(pair: KeyPair, a: int) -> tuple[str, int | None]:
    """Who knows the key: always right, and likes the reference better."""
    if pair.x is None:
        return ("a" if pair.writers[a - 1] == "reference" else "b"), None
    return ("a" if pair.x == a else "b"), 3


def wrong(pair: KeyPair, a: int) -> tuple[str, int | None]:
    choice, confidence = right(pair, a)
    return ("b" if choice == "a" else "a"), confidence


def always_a(pair: KeyPair, a: int) -> tuple[str, int | None]:
    return "a", None if pair.x is None else 1


def undecided(pair: KeyPair, a: int) -> tuple[str, int | None]:
    """Never prefers one, and guesses A."""
    return ("equal", None) if pair.x is None else ("a", 1)


def right_in(share: float, seed: int) -> Answer:
    """Right with this probability, on pairs of the two models; on others by a coin, or always."""
    numbers = random.Random(seed)

    def answer(pair: KeyPair, a: int) -> tuple[str, int | None]:
        chance = {PairKind.TEST: share, PairKind.SURE: 1.0, PairKind.SAME_MODEL: 0.5}[pair.kind]
        return (right if numbers.random() < chance else wrong)(pair, a)

    return answer
