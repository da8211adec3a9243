"""A model on the Hub as people write it: its id, or the address of its page."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from deltarank.errors import UsageError

_ID = re.compile(r"(?P<id>[\w][\w.-]{0,95}/[\w][\w.-]{0,95})(?:@(?P<revision>[^@\s]{1,200}))?", re.ASCII)
_HOSTS = ("huggingface.co", "hf.co")
_REVISION_PAGES = ("tree", "commits", "commit")
_OTHER_KINDS = ("datasets", "spaces", "collections", "papers", "docs", "blog", "models", "posts", "kernels", "buckets")
_CURE = "Give the address of the model, such as https://huggingface.co/org/name, or its id, org/name."


@dataclass(frozen=True)
class HubAddress:
    """A model repository; `revision` is a branch, tag or commit, None for the default branch."""

    repo_id: str
    revision: str | None = None


def is_hub_url(text: str) -> bool:
    """Whether it has the form `hf:org/name`, or is an address on the Hub's host: not just an id."""
    return text.startswith("hf:") or _page(text) is not None


def parse_hub_address(text: str) -> HubAddress | None:
    """The model that is meant; None if `text` is no address on the Hub.

    `org/name`, `org/name@revision`, both with `hf:` or `hf://` before them; the address of the model's page on
    huggingface.co, hf.co or the host of HF_ENDPOINT, and of the page of a revision (`/tree/REV`, `/commit/REV`).

    Raises:
        UsageError: (slug "bad-reference") a page of the Hub that is not a model's.
    """
    page = _page(text)
    if page is not None:
        return _of_page(page, text)
    name = text.removeprefix("hf:").removeprefix("//").rstrip("/") if text.startswith("hf:") else text
    match = _ID.fullmatch(name)
    return HubAddress(match["id"], match["revision"]) if match else None


def _page(text: str) -> str | None:
    """The path of a URL of the Hub, with or without its scheme; None if it is something else."""
    if "://" in text and not text.lower().startswith(("http://", "https://")):
        return None
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError:  # such as an unclosed bracket in the host
        return None
    own = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower()
    host = parts.netloc.lower().removeprefix("www.")
    return parts.path if host in (*_HOSTS, own) and host else None


def _of_page(page: str, text: str) -> HubAddress:
    parts = [unquote(part) for part in page.strip("/").split("/") if part]
    name = "/".join(parts[:2]).removesuffix(".git")
    match = _ID.fullmatch(name)
    if match is None or parts[0] in _OTHER_KINDS:
        raise _refused(text, "is a page of the Hub, but not that of a model")
    return HubAddress(match["id"], _revision(parts[2:], text) or match["revision"])


def _revision(rest: list[str], text: str) -> str | None:
    """What a page of one revision says, such as `tree/v1`; None for the page of the model itself."""
    if not rest:
        return None
    if rest[0] not in _REVISION_PAGES or len(rest) == 1:
        raise _refused(text, "is the address of a file or a page of a model, not of the model")
    parts = 3 if rest[1] == "refs" and len(rest) > 3 else 1  # refs/pr/3 is one revision
    if len(rest) > 1 + parts:
        raise _refused(text, "is the address of a folder in a model, not of the model")
    return "/".join(rest[1 : 1 + parts])


def _refused(text: str, what: str) -> UsageError:
    return UsageError(f"{text[:200]!a} {what}.", cure=_CURE, slug="bad-reference")
