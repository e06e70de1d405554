"""The package as its user meets it: imports, dependencies, registries, files."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
import subprocess
import sys
from fnmatch import fnmatch

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import metapeft as mp
from metapeft.base.registry import Registry
from tests.public_names import ROOT, package_of, tables

PACKAGES = [package_of(table) for table in tables()]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.fixture
def setup_arguments(monkeypatch) -> dict:
    """What setup.py says, without running setuptools."""
    arguments: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def requirements(arguments: dict, extras: tuple[str, ...] | None = None) -> dict[str, Requirement]:
    """Canonical name -> requirement, of the core and of the extras (all of them unless named)."""
    chosen = arguments["extras_require"] if extras is None else extras
    lines = [
        *arguments["install_requires"],
        *(line for extra in chosen for line in arguments["extras_require"][extra]),
    ]
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


def pins(file: str) -> dict[str, str]:
    lines = (
        line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()
    )
    found = (re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines)
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def registry_entries() -> list[tuple[str, str]]:
    return [
        (package, name)
        for package in PACKAGES
        for name in importlib.import_module(f"{package}.table").registry.attributes
    ]


def test_import_loads_nothing_heavy():
    code = (
        "import sys, torch; old = set(sys.modules); import metapeft; print(*sorted(set(sys.modules) - old))"
    )
    assert {name for name in python(code).split() if not name.startswith("metapeft")} == set()
    loaded = python("import sys, metapeft; dir(metapeft); print(*sys.modules)").split()
    heavy = {"matplotlib", "scipy", "tensorly", "transformers", "higher", "rich", "cyclopts", "jinja2", "PIL"}
    assert heavy.isdisjoint(loaded)
    assert [name for name in loaded if re.match(r"metapeft\.datasets\.|theory|benchmarks", name)] == []


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Lora'"):
        _ = mp.Lora


def test_versions_are_lower_bounds(setup_arguments):
    for name, requirement in requirements(setup_arguments).items():
        assert re.fullmatch(r">=[\d.]+", str(requirement.specifier)), name


def test_pins_meet_the_bounds(setup_arguments):
    core = requirements(setup_arguments, extras=())
    assert set(pins("requirements.txt")) == set(core)
    constraints = pins("constraints.txt")
    assert constraints.keys().isdisjoint(core)
    everywhere = pins("requirements.txt") | constraints | pins("requirements-peers-nodeps.txt")
    for name, requirement in requirements(setup_arguments).items():
        assert everywhere[name] in requirement.specifier, name


def test_tests_need_no_torchvision(setup_arguments):
    """Its wheels do not import beside a torch without CUDA, and break other libraries by being there."""
    assert {"torchvision", "timm", "learn2learn", "torchmeta"}.isdisjoint(
        requirements(setup_arguments, ("test", "lint"))
    )


def test_dependencies_are_justified(setup_arguments):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    justified = {canonicalize_name(name) for name in re.findall(r"^- `([\w.-]+)`: \S+", text, flags=re.M)}
    assert set(requirements(setup_arguments)) - justified == set()
    peers = pins("requirements-peers.txt") | pins("requirements-peers-nodeps.txt")
    assert set(peers) - justified == set()


def test_contributing_names_what_is_there():
    rows = re.findall(
        r"^\| .* \| `(metapeft/[\w/]+/)` \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M
    )
    files = [ROOT / folder / name for folder, text in rows for name in re.findall(r"`(\w+\.py)`", text)]
    assert len(rows) == 8
    assert [file for file in files if not file.exists()] == []


@pytest.mark.parametrize(("package", "one"), [("metapeft", "py.typed"), ("theory", "figures/summary.html")])
def test_package_data_is_complete(setup_arguments, package, one):
    """Whatever is no Python file in the package is matched by a pattern, so that a wheel has it too."""
    patterns = setup_arguments["package_data"][package]
    files = [
        path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    names = [path.relative_to(ROOT / package).as_posix() for path in files if path.suffix != ".py"]
    assert one in names
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    for path in files:
        assert path.suffix != ".py" or (path.parent / "__init__.py").exists(), path


def test_every_folder_has_a_table():
    extended = {*mp._FOLDERS, "backbones", "inner", "methods", "experiments.report"}
    assert {f"metapeft.{folder}" for folder in extended} <= set(PACKAGES)
    for package in PACKAGES:
        registry = importlib.import_module(f"{package}.table").registry
        assert isinstance(registry, Registry)
        assert registry.package == package
        assert set(registry.names.values()) <= set(registry.attributes), package


@pytest.mark.parametrize(("package", "name"), registry_entries())
def test_registry_entry(package, name):
    """It resolves, twice to the same thing (a file of that name would hide it), and has an example."""
    module = importlib.import_module(package)
    thing = module.registry.attribute(name)
    assert getattr(module, name) is thing
    assert not inspect.ismodule(thing)
    if callable(thing) and not (isinstance(thing, type) and issubclass(thing, BaseException)):
        assert re.search(r"Examples?:\s+>>>", inspect.getdoc(thing) or ""), f"{name} has no example"


def test_names_do_not_clash():
    """One name, one thing: what two folders both offer through `mp` would depend on their order."""
    tables_of_mp = [importlib.import_module(f"metapeft.{folder}.table") for folder in mp._FOLDERS]
    names = [name for table in tables_of_mp for name in table.registry]
    assert sorted(names) == sorted(set(names))
    assert set(names).isdisjoint({*mp._NAMES, *mp._NAMESPACES})


def test_no_machine_paths():
    """Text in the repository names no folder of somebody's machine."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    files = [ROOT / name for name in listed.split("\0") if name] or [*ROOT.rglob("*.py"), *ROOT.glob("*.*")]
    pattern = re.compile(rb"(?<![\w./-])/(work|home|root|opt|farm|Users|mnt|data)/\w")
    found = [str(file) for file in files if file.is_file() and pattern.search(file.read_bytes())]
    assert found == []


@pytest.mark.slow
def test_readme_example(tmp_path):
    """The example runs as it stands, in a folder of its own, with warnings as errors."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert blocks
    for block in blocks:
        command = [sys.executable, "-W", "error", "-c", block]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        assert "of 15 right" in done.stdout


def test_the_citation_names_this_version() -> None:
    said = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {mp.__version__}\n" in said
