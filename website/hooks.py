"""What the site has beside docs/: pages of the repository, the interactive pages of the gallery, the notebook.

Links in the Markdown are those that work on GitHub. On the site, a link to a file that is no page of it leads there.
"""

from __future__ import annotations

import json
import lzma
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from deltarank.report import endpoints_page, fleet_html, page_html
from deltarank.results import EndpointResults, Fleet, Results

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GITHUB = "https://github.com/deltarank/deltarank/blob/main/"
SITE = "https://deltarank.github.io/deltarank/"
REPOSITORY_PAGES = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").rglob("*.md")),
]
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()([^)\s]+)(\))")
_FENCED = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.MULTILINE | re.DOTALL)


OWN_FILES = ("site.css", "file-worker.js")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Search in pages opened as files needs a script. The plugin's is on another host, ours beside the pages."""
    config.extra["polyfills"] = ["file-worker.js"]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name in REPOSITORY_PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    for name, html in gallery_pages().items():
        files.append(File.generated(config, f"gallery/{name}.html", content=html))
    for name in OWN_FILES:
        files.append(File.generated(config, name, content=(ROOT / "website" / name).read_text(encoding="utf-8")))
    files.append(File.generated(config, "notebook.md", content=notebook_page(DOCS / "tutorial.ipynb")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    name = page.file.src_uri
    parts = _FENCED.split(markdown)
    return "".join(part if i % 2 else _with_links_of_the_site(part, name) for i, part in enumerate(parts))


def _with_links_of_the_site(markdown: str, page: str) -> str:
    return _LINK.sub(lambda m: m[1] + link_on_the_site(m[2], page) + m[3], markdown)


def link_on_the_site(target: str, page: str) -> str:
    """A link of a page, as the site has it; `page` is its path in docs/, or in the repository."""
    if target.startswith(SITE):
        return os.path.relpath(target.removeprefix(SITE), PurePosixPath(page).parent or ".")
    if re.match(r"[a-z]+:|#", target):
        return target
    path, hash_mark, anchor = target.partition("#")
    folder = (ROOT if page in REPOSITORY_PAGES else DOCS) / PurePosixPath(page).parent
    file = Path(os.path.normpath(folder / path))
    inside = file.relative_to(ROOT).as_posix()
    if file.is_relative_to(DOCS) and file.suffix != ".ipynb":
        place = file.relative_to(DOCS).as_posix()
    elif inside in REPOSITORY_PAGES:
        place = inside
    else:
        return GITHUB + inside + hash_mark + anchor
    return os.path.relpath(place, PurePosixPath(page).parent or ".") + hash_mark + anchor


def gallery_pages() -> dict[str, str]:
    """The reports on the runs in docs/gallery, each as one file of HTML, made by the report of today."""
    pages = {}
    for folder in sorted(path for path in (DOCS / "gallery").iterdir() if path.is_dir()):
        stored = [lzma.decompress(path.read_bytes()).decode() for path in sorted(folder.glob("*.json.xz"))]
        pages[folder.name] = _report(folder.name, stored)
    return pages


def _report(name: str, stored: list[str]) -> str:
    if name == "fleet":
        return fleet_html(Fleet.from_json(stored[0]))
    if name in ("endpoints", "identification"):
        return endpoints_page(EndpointResults.from_json(stored[0]))
    return page_html([Results.from_json(each) for each in stored])


def notebook_page(notebook: Path) -> str:
    """A stored notebook as Markdown: its text, its code, and what the code showed."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts.extend(filter(None, map(_shown, cell["outputs"])))
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```" if output["name"] == "stdout" else ""
    data = output.get("data", {})
    if "text/html" in data:
        html = re.sub(r"\n\s*\n", "\n", "".join(data["text/html"]))
        return f'<div class="shown">\n{html}\n</div>'
    return f"```text\n{''.join(data['text/plain'])}\n```" if "text/plain" in data else ""
