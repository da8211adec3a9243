"""The table of servers in docs/extraction.md, made from servers.json.

`python tests/house/servers_page.py` writes it again.
"""

import re
from pathlib import Path

from deltarank.servers import Server, known_servers

PAGE = Path(__file__).parents[2] / "docs" / "extraction.md"
_BLOCK = re.compile(r"(?<=<!-- servers -->\n\n).*?(?=<!-- /servers -->)", re.DOTALL)
_PARTS = {
    "lm_head": "an untied lm_head",
    "expert": "experts",
    "embedding": "embeddings",
    "position": "position embeddings",
    "norm": "norms",
    "router": "routers",
}


def render() -> str:
    lines = [
        "| `--server` | version | run | rank slots | scale | beside plain linear modules | needs | no LoRA on |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {' | '.join(_cells(server))} |" for server in known_servers()]
    return "\n".join(lines) + "\n"


def _cells(server: Server) -> list[str]:
    evidence = server.evidence
    return [
        f"`{server.name}`",
        f"{evidence.name} {evidence.version}" if evidence.version else "all below",
        _run(server),
        ", ".join(map(str, server.slots)) if server.slots else "any",
        _SCALES[server.scale],
        _carried(server) or "nothing",
        _needs(server) or "nothing",
        _unloaded(server),
    ]


_SCALES = {
    "config": "alpha / r",
    "tensor": "alpha / the rank of each tensor",
    "patterns": "as rank_pattern and alpha_pattern say",
}


def _run(server: Server) -> str:
    evidence = server.evidence
    if not evidence.version:
        return ""
    if not evidence.run:
        return f"no; source read {evidence.read}"
    return f"{evidence.run}; only read: {evidence.only_read}" if evidence.only_read else evidence.run


def _carried(server: Server) -> str:
    ways: dict[str, list[str]] = {}
    for kind, way in server.carries.items():
        ways.setdefault(way, []).append(_PARTS[kind])
    words = {"factors": "", "whole": " (whole)", "on request": " (if included by name)"}
    return "; ".join(f"{', '.join(kinds)}{words[way]}" for way, kinds in ways.items())


def _needs(server: Server) -> str:
    needs = [", ".join(group.modules) + " together" for group in server.groups]
    return "; ".join([*needs, *(["every layer of each type of module"] if server.needs_every_layer else [])])


def _unloaded(server: Server) -> str:
    if server.is_portable or server.like:
        return "what a row below leaves out" if server.is_portable else f"as `{server.like}`"
    modules = ", ".join(sorted(server.not_modules | server.ignored_modules))
    models = ", ".join(sorted(server.no_lora))
    others = "modules of other names than q, k, v, o, gate, up, down and a few more" if server.modules else ""
    return "; ".join(filter(None, (models, modules, others)))


def page_with(table: str) -> str:
    return _BLOCK.sub(lambda _: table, PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page_with(render()), encoding="utf-8")
