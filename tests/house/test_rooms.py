"""The rooms of the package: what stands at its root, what each room may import, and that no import goes in a circle."""

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "deltarank"
MODULES = sorted(SOURCE.rglob("*.py"))
JOBS = ("blind", "calibrate", "compare", "endpoints", "extract", "fleet", "outputs", "verify", "which_base")


@dataclass(frozen=True)
class Rule:
    """What a room may import: other rooms of ours, and packages of others beside the standard library."""

    rooms: frozenset[str]
    packages: frozenset[str]


def rule(rooms: str, packages: str = "") -> Rule:
    return Rule(frozenset(rooms.split()), frozenset(packages.split()))


RULES = {
    "": rule("system", "lazy_loader"),
    "__main__": rule("cli"),
    "errors": rule(""),
    "system": rule("errors"),
    "tensor_names": rule(""),
    "results": rule("errors system tensor_names", "msgspec"),
    "spectra": rule("errors results system", "torch numpy scipy"),
    # gguf: its table of names and its decoding of ggml's types, once a GGUF file is opened
    "checkpoints": rule("errors results system tensor_names", "torch numpy huggingface_hub hf_xet safetensors gguf"),
    "divergence": rule("errors results system", "torch numpy scipy sklearn"),
    "servers": rule("errors results system tensor_names"),
    "architectures": rule("errors results system checkpoints", "torch transformers peft"),
    "adapters": rule("errors results system tensor_names checkpoints servers architectures", "torch numpy"),
    "models": rule(
        "errors results system checkpoints divergence architectures",
        "torch transformers accelerate safetensors numpy gguf bitsandbytes",
    ),
    "runtime": rule("errors results system checkpoints spectra adapters", "torch tqdm"),
    "ray_pool": rule("errors results checkpoints runtime", "torch ray"),
    "activations": rule("errors results system checkpoints spectra divergence architectures models", "torch"),
    "report": rule("errors results system", "jinja2 markupsafe vl_convert"),
    "openai_api": rule("errors results system divergence", "openai httpx2"),
    "jobs": rule("errors"),
    "jobs.blind": rule("errors results system divergence report", "numpy scipy"),
    "jobs.compare": rule("errors results system checkpoints spectra adapters runtime divergence activations", "torch"),
    # models and openai_api: for --live alone
    "jobs.verify": rule(
        "errors results system servers checkpoints spectra adapters runtime divergence models openai_api", "torch"
    ),
    "jobs.which_base": rule("errors results system checkpoints spectra runtime jobs.compare"),
    "jobs.fleet": rule(
        "errors results system checkpoints spectra adapters runtime servers jobs.compare jobs.extract",
        "torch numpy scipy",
    ),
    "jobs.extract": rule(
        "errors results system tensor_names checkpoints servers spectra adapters runtime architectures jobs.compare",
        "torch",
    ),
    "jobs.outputs": rule(
        "errors results system tensor_names checkpoints servers spectra adapters runtime divergence models "
        "jobs.compare",
        "torch numpy",
    ),
    "jobs.calibrate": rule(
        "errors results system tensor_names checkpoints servers adapters runtime architectures divergence models "
        "jobs.extract jobs.outputs jobs.verify",
        "torch numpy peft safetensors",
    ),
    # models and jobs.outputs: for --weights alone
    "jobs.endpoints": rule(
        "errors results system checkpoints divergence runtime models openai_api jobs.outputs", "numpy torch"
    ),
    "demo": rule("errors results system", "torch transformers peft numpy safetensors tokenizers tqdm"),
    "cli": rule(
        " errors results system tensor_names servers runtime ray_pool report demo "
        + " ".join(f"jobs.{job}" for job in JOBS),
        "click tqdm",
    ),
}

HEAVY = ("torch", "transformers", "peft", "altair", "vl_convert", "huggingface_hub", "numpy", "scipy", "sklearn")


@dataclass(frozen=True)
class Import:
    """A module named in an import statement, wherever it stands, and the name taken from it, if any."""

    module: str
    name: str | None
    line: int

    @property
    def is_ours(self) -> bool:
        return self.module.partition(".")[0] == "deltarank"


@functools.cache
def imports(path: Path) -> tuple[Import, ...]:
    """Imports inside functions count, too; those for type checkers alone do not run, and do not."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unread = {id(n) for node in ast.walk(tree) if _is_for_types_only(node) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides which room it enters"
            yield from (Import(node.module or "", alias.name, node.lineno) for alias in node.names)


def _is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room_of(module: str) -> str:
    """The room of a dotted name: "deltarank.jobs.compare.run" -> "jobs.compare"; "" is the package itself."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["jobs"] else parts[:1])


def module_of(path: Path) -> str:
    parts = ["deltarank", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def shown(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def test_the_root_holds_the_front_the_errors_and_rooms() -> None:
    found = {path.name for path in SOURCE.iterdir() if path.name != "__pycache__"}
    files = {name for name in found if (SOURCE / name).is_file()}

    assert files == {"__init__.py", "__init__.pyi", "__main__.py", "errors.py", "py.typed"}
    assert all((SOURCE / name / "__init__.py").is_file() for name in found - files)


def test_every_room_has_a_rule() -> None:
    assert {room_of(module_of(path)) for path in MODULES} == set(RULES)


def offences(is_allowed: Callable[[str, Import], bool]) -> list[str]:
    """The imports that break a rule of (the room, the import)."""
    return [
        f"{shown(path)}:{x.line}: {x.module}"
        for path in MODULES
        for x in imports(path)
        if not is_allowed(room_of(module_of(path)), x)
    ]


def test_a_room_imports_only_its_own_dependencies() -> None:
    def is_allowed(here: str, x: Import) -> bool:
        package = x.module.split(".")[0]
        return x.is_ours or package in sys.stdlib_module_names or package in RULES[here].packages

    assert offences(is_allowed) == []


def test_a_room_imports_only_the_rooms_below_it() -> None:
    def is_allowed(here: str, x: Import) -> bool:
        room = room_of(x.module)
        return not x.is_ours or x.module == "deltarank" or room == here or room in RULES[here].rooms

    assert offences(is_allowed) == []


def test_a_room_is_entered_through_its_init() -> None:
    def is_allowed(here: str, x: Import) -> bool:
        room = room_of(x.module)
        return not x.is_ours or room in ("", here) or x.module == f"deltarank.{room}"

    assert offences(is_allowed) == []


def test_no_import_goes_in_a_circle() -> None:
    """File by file, lazy imports counted; a room's `__init__` is the files that it imports from."""
    names = {module_of(path): path for path in MODULES}
    graph = {
        module: {
            x.module if f"{x.module}.{x.name}" not in names else f"{x.module}.{x.name}"
            for x in imports(path)
            if x.is_ours
        }
        - {module, "deltarank"}
        for module, path in names.items()
    }

    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_no_class_is_defined_twice() -> None:
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(shown(path))

    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_no_name_hides_a_module() -> None:
    """A function `measure` offered by a room that has a file measure.py would stand in the way of the file."""
    hidden = {
        f"{shown(path)}: {x.name}"
        for path in MODULES
        if path.name == "__init__.py"
        for x in imports(path)
        if x.is_ours and x.module != "deltarank" and (path.parent / f"{x.name}.py").exists()
    }

    assert hidden == set()


def test_files_inside_rooms_have_plain_names() -> None:
    assert [shown(path) for path in MODULES if path.name.startswith("_") and not path.name.startswith("__")] == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["extract", "--help"], ["demo", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from deltarank.cli import main; code = main(sys.argv[1:]); "
        f"print('loaded:', *(name for name in {HEAVY!r} if name in sys.modules)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, deltarank; dir(deltarank); print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_help_imports_few_modules() -> None:
    """256 of them take 0.2 s of processor time; torch alone would add hundreds."""
    code = "import sys; from deltarank.cli import main; main(['--help']); print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert int(done.stdout.splitlines()[-1]) < 350
