"""The papers say what the code does: commands, options, messages, examples."""

import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import rooms_page
import servers_page
from cli_page import GROUP, PAGE, commands, render

ROOT = Path(__file__).parents[2]
DOCS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


@functools.cache
def slugs_in_code() -> frozenset[str]:
    """What is given for a parameter `slug`: by name, by place, or as its default."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    return frozenset(slug for text in sources if "slug" in text for slug in _slugs(ast.parse(text)))


def _slugs(tree: ast.AST) -> Iterator[str]:
    places = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            named = [argument.arg for argument in node.args.args]
            if "slug" in named:
                places[node.name] = named.index("slug")
            for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
                if argument.arg == "slug" and default is not None:
                    yield from _written(default)
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "slug":
            yield from _written(node.value)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in places:
            for given in node.args[places[node.func.id] :][:1]:
                yield from _written(given)


def _written(node: ast.expr) -> Iterator[str]:
    """A slug in quotes; one made of parts stands for all the sections that it fits."""
    if isinstance(node, ast.Constant):
        yield node.value
    if isinstance(node, ast.JoinedStr):
        parts = [re.escape(str(x.value)) if isinstance(x, ast.Constant) else "[a-z]+" for x in node.values]
        yield from (slug for slug in slugs_in_docs() if re.fullmatch("".join(parts), slug))


def slugs_in_docs() -> list[str]:
    return re.findall(r"^## ([a-z-]+)$", (ROOT / "docs" / "messages.md").read_text(encoding="utf-8"), re.MULTILINE)


def commands_in(page: Path) -> list[str]:
    """The command lines in a page's code blocks."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [part.removeprefix("$ ").strip() for x in blocks for line in x.splitlines() for part in line.split("&&")]
    return [line for line in lines if line.startswith("deltarank ")]


def test_every_message_is_explained() -> None:
    assert slugs_in_code() - set(slugs_in_docs()) == set()


def test_no_explanation_is_of_a_message_that_went_away() -> None:
    assert set(slugs_in_docs()) - slugs_in_code() == set()


def test_messages_are_in_order_and_each_once() -> None:
    assert sorted(set(slugs_in_docs())) == slugs_in_docs()


def test_every_slug_is_an_anchor() -> None:
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", slug) for slug in slugs_in_code())


def test_the_page_of_commands_is_up_to_date() -> None:
    """If this fails: python tests/house/cli_page.py."""
    assert PAGE.read_text(encoding="utf-8") == render()


def test_the_table_of_servers_is_up_to_date() -> None:
    """If this fails: python tests/house/servers_page.py."""
    page = servers_page.PAGE.read_text(encoding="utf-8")

    assert page == servers_page.page_with(servers_page.render())


def test_the_table_of_the_rooms_is_up_to_date() -> None:
    """If this fails: python tests/house/rooms_page.py."""
    page = rooms_page.PAGE.read_text(encoding="utf-8")

    assert page == rooms_page.page_with(rooms_page.render())
    assert "| `jobs/compare` | " in page


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_no_page_has_a_diagram_that_the_site_loads_a_script_for(page: Path) -> None:
    """Material for MkDocs shows a page with a block of Mermaid by a script from unpkg.com."""
    assert "```mermaid" not in page.read_text(encoding="utf-8")


def test_every_file_that_the_architecture_names_exists() -> None:
    page = rooms_page.PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|json))`", page)) - {"jobs/NAME/options.py"}
    named = {path for path in named if not path.startswith("tests/")}

    assert len(named) > 20
    assert {path for path in named if not (ROOT / "src" / "deltarank" / path).is_file()} == set()


def test_every_command_and_option_has_help() -> None:
    for _, command in [*GROUP.commands.items(), *commands()]:
        assert command.help
        assert command.short_help
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"{command.name} {option.opts}"


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_commands_in_the_docs_can_be_given(page: Path) -> None:
    for line in commands_in(page):
        if page == PAGE:
            continue  # usage lines, compared above
        verb, *arguments = shlex.split(line, comments=True)[1:]
        if verb.startswith("-"):
            continue
        assert verb in GROUP.commands, line
        command = GROUP.commands[verb]
        if isinstance(command, click.Group):
            verb, *arguments = arguments
            command = command.commands[verb]
        command.make_context(verb, arguments, resilient_parsing=False)


def test_the_readme_shows_the_two_commands() -> None:
    verbs = {line.split()[1] for line in commands_in(ROOT / "README.md")}

    assert {"demo", "compare"} <= verbs


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#", "mailto:")):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_absolute_links_of_the_readme_lead_to_files() -> None:
    """They are absolute so that they live on the package index, too."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    place = re.compile(
        r"https://(?:github\.com/deltarank/deltarank/blob|raw\.githubusercontent\.com/deltarank/deltarank)/main/"
    )
    ours = [place.sub("", target) for target in targets if place.match(target)]

    assert len(ours) > 20
    assert [each for each in ours if not (ROOT / each.split("#")[0]).is_file()] == []
    assert [target for target in targets if not target.startswith("https://")] == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]

    assert [page for page in pages if not re.search(rf"[ :]{page}$", navigation, re.MULTILINE)] == []


def test_the_docs_leave_nothing_to_do() -> None:
    for page in DOCS:
        assert not re.search(r"\b(TODO|FIXME|TBD|XXX)\b", page.read_text(encoding="utf-8")), page.name
