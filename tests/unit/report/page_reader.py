"""Reads a page: its elements, and its text outside scripts and styles."""

from html.parser import HTMLParser


class PageReader(HTMLParser):
    """Elements in order, and the text of scripts, styles and all else."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in self.raw:
            self.raw[tag].append("")
            self._inside = tag

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data):
        if self._inside:
            self.raw[self._inside][-1] += data
        else:
            self.text.append(data)

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(" ".join(self.text).replace("\u00a0", " ").split())
