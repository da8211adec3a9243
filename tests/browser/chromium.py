"""A page opened in Chromium, and what it asked for and complained of."""

import shutil
from dataclasses import dataclass, field

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
NBSP = "\u00a0"
TWO_FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@dataclass
class Opened:
    """A page, and what it asked for and complained of."""

    page: object
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text().replace(NBSP, " ")

    def fills(self, run: int = 0) -> list[str]:
        """The colours of the cells of a heat map, in their order."""
        return self.page.evaluate(
            "r => [...document.querySelectorAll(`.heat[data-run='${r}'] .mark-rect.layer_0_marks path`)]"
            ".map(path => path.getAttribute('fill'))",
            run,
        )

    def settle(self) -> None:
        """Waits until the page has answered what was done to it, and its charts are drawn."""
        self.page.evaluate(TWO_FRAMES)  # what follows from a change, such as of the colour scheme, begins with a frame
        self.page.wait_for_selector("html[data-ready=yes]")
        self.page.evaluate(TWO_FRAMES)

    def wait_until(self, condition: str, argument: object = None) -> None:
        """Playwright's own `wait_for_function` needs eval, which the pages' policy forbids."""
        for _ in range(500):
            if self.page.evaluate(condition, argument):
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"never true: {condition}")

    def select_rank(self, rank: int) -> None:
        self.page.locator("#rank-selector label", has_text=str(rank)).first.click()
        self.settle()
