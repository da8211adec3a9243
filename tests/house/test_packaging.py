"""What is published beside the code: the packages, the workflows, the citation, the issue forms."""

import email
import io
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = re.compile(
    r"https://(?:github\.com/deltarank/deltarank/(?:blob|tree)|raw\.githubusercontent\.com/deltarank/deltarank)/main/"
)


def build(kind: str, folder: Path) -> Path:
    """A package, built by hatchling in a process of its own, which changes its folder."""
    program = f"import hatchling.build as b; print(b.build_{kind}({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        check=True,
        capture_output=True,
        text=True,
    )
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def source_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_the_source_package_has_all_that_the_readme_links(source_package: Path) -> None:
    with tarfile.open(source_package) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
        top = f"deltarank-{PROJECT['version']}"
        member = archive.extractfile(f"{top}/README.md")
        assert member is not None
        readme = member.read().decode()
    targets = [REPOSITORY.sub("", target) for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", readme)]
    linked = {target.rstrip("/") for target in targets if not target.startswith("http")}

    assert len(linked) >= 10
    assert {target for target in linked if not any(f == target or f.startswith(f"{target}/") for f in files)} == set()
    assert {"CITATION.cff", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", ".ci/run"} <= files


def test_the_wheel_has_what_is_read_at_run_time_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    data = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("*") if _is_data(p)}

    assert {
        "deltarank/messages.md",
        "deltarank/glossary.md",
        "deltarank/py.typed",
        "deltarank/servers/servers.json",
    } <= names
    assert data <= names
    assert {name.split("/")[0] for name in names} == {"deltarank", f"deltarank-{PROJECT['version']}.dist-info"}


def _is_data(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".pyc",) and "__pycache__" not in path.parts


def test_the_metadata_names_authors_addresses_and_pythons(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"deltarank-{PROJECT['version']}.dist-info/METADATA")
    found = email.message_from_binary_file(io.BytesIO(text))

    assert found["Author"] == found["Maintainer"] == "The deltarank developers"
    assert found["License-Expression"] == "Apache-2.0"
    labels = {line.split(",")[0] for line in found.get_all("Project-URL", [])}
    assert labels == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    pythons = [line.rsplit(" ", 1)[1] for line in found.get_all("Classifier", []) if ":: Python :: 3." in line]
    assert pythons == ["3.11", "3.12", "3.13", "3.14"]
    assert found["Requires-Python"] == ">=3.11"


@pytest.mark.slow
def test_the_wheel_runs_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """In a virtual environment that takes the other packages from this one."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", tmp_path / "alone"], check=True
    )
    place = next((tmp_path / "alone").rglob("site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    python = tmp_path / "alone" / "bin" / "python"
    for packages in (path for path in sys.path if path.endswith("site-packages")):
        (place / "others.pth").write_text(packages + "\n")
    for words, shown in (
        (["--version"], f"deltarank {PROJECT['version']}\n"),
        (["explain", "wrong-base"], "\nCure: "),
    ):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        program = [
            python,
            "-c",
            "import sys, deltarank.cli; assert 'alone' in deltarank.__file__; sys.exit(deltarank.cli.main())",
            *words,
        ]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("vendor.github-workflows", ".github/workflows/*.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/*.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("vendor.github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_other_programs_keep_to_their_schema(schema: str, pattern: str) -> None:
    files = sorted(ROOT.glob(pattern))
    kind = ["--default-filetype", "yaml"] if pattern.endswith(".cff") else []
    done = CliRunner().invoke(check_jsonschema, ["--builtin-schema", schema, *kind, *map(str, files)])

    assert files
    assert done.exit_code == 0, done.output


def test_a_workflow_that_breaks_the_schema_is_found(tmp_path: Path) -> None:
    text = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    (tmp_path / "broken.yml").write_text(text.replace("runs-on:", "runs_on:"))
    done = CliRunner().invoke(
        check_jsonschema, ["--builtin-schema", "vendor.github-workflows", str(tmp_path / "broken.yml")]
    )

    assert done.exit_code == 1


def test_issue_forms_ask_for_the_versions() -> None:
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"):
        assert "`deltarank --version`" in form.read_text(encoding="utf-8"), form.name


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[:2] == ["Unreleased", PROJECT["version"]]


def test_the_matrix_has_the_pythons_of_the_classifiers() -> None:
    workflow = (ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"python: \[(.+)\]", workflow)

    classified = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if ":: Python :: 3." in line]
    assert re.findall(r'"(.+?)"', listed) == classified
