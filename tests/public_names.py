"""The public names as type checkers and readers see them: `python -m tests.public_names` writes them from the tables.

A lazy `__init__.py` gets two parts, and keeps the rest as it stands: the imports under `if TYPE_CHECKING:`, and
`__all__`. Names come from the `table.py` beside it; those of `metapeft` itself from the tables that it is a front of,
and from `_NAMES` and `_NAMESPACES` in it.
"""

from __future__ import annotations

import importlib
import re
from itertools import groupby
from pathlib import Path

import metapeft

ROOT = Path(metapeft.__file__).parent.parent
WIDTH = 110
COMMAND = "python -m tests.public_names"


def lazy() -> list[Path]:
    """The `__init__.py` files whose names are imported on first use."""
    return sorted([ROOT / "metapeft/__init__.py", *(t.parent / "__init__.py" for t in tables())])


def tables() -> list[Path]:
    """The tables of names in the package, however deep."""
    return sorted((ROOT / "metapeft").rglob("table.py"))


def package_of(path: Path) -> str:
    """The dotted name of the folder that a file lies in."""
    return ".".join(path.parent.relative_to(ROOT).parts)


def sources(package: str) -> dict[str, str]:
    """Public name of a package -> `"module:attribute"` that it stands for.

    Example:
        >>> sources("metapeft.generators")["MappingNet"], sources("metapeft")["inner"]
        ('metapeft.generators.mapping_net:MappingNet', 'metapeft:inner')
    """
    if package != "metapeft":
        attributes = importlib.import_module(f"{package}.table").registry.attributes
        modules = {
            name: module if ":" in module else f"{module}:{name}" for name, module in attributes.items()
        }
        return {name: f"{package}.{module}" for name, module in modules.items()}
    found = {name: f"metapeft.{module}:{name}" for name, module in metapeft._NAMES.items()}
    for name, module in metapeft._NAMESPACES.items():
        parent, _, attribute = f"metapeft.{module}".rpartition(".")
        found[name] = f"{parent}:{attribute}"
    for folder in metapeft._FOLDERS:
        found |= sources(f"metapeft.{folder}")
    return found


def sorting(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Where ruff puts a name: CONSTANTS, then Classes, then functions; numbers in names by their size.

    Example:
        >>> sorted(["box", "r10", "r2", "Adam", "LBFGS"], key=sorting)
        ['LBFGS', 'Adam', 'box', 'r2', 'r10']
    """
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    parts = re.findall(r"\d+|\D+", name)
    return kind, [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def line(module: str, names: list[str]) -> str:
    """One import under `if TYPE_CHECKING:`, wrapped as ruff wraps it."""
    text = f"    from {module} import {', '.join(names)}\n"
    if len(text) <= WIDTH + 1:
        return text
    return f"    from {module} import (\n" + "".join(f"        {name},\n" for name in names) + "    )\n"


def imports(found: dict[str, str]) -> str:
    """The imports of all names, modules in order."""
    pairs = [(*source.split(":"), name) for name, source in found.items()]
    pairs.sort(key=lambda pair: (pair[0].split("."), sorting(pair[1])))
    text = ""
    for module, group in groupby(pairs, key=lambda pair: pair[0]):
        own = [(attribute, name) for _, attribute, name in group]
        if plain := [name for attribute, name in own if attribute == name]:
            text += line(module, plain)
        for attribute, name in own:
            text += line(module, [f"{attribute} as {name}"]) if attribute != name else ""
    return text


def written(init: Path) -> str:
    """The text of an `__init__.py` with both parts as the tables say."""
    package, text = package_of(init), init.read_text(encoding="utf-8")
    found = sources(package)
    names = sorted([*found, "__version__" if package == "metapeft" else "registry"], key=sorting)
    everything = "".join(f'    "{name}",\n' for name in names)
    parts = {
        r"^if TYPE_CHECKING:\n(?: .*\n)+": f"if TYPE_CHECKING:\n{imports(found)}",
        r"^__all__ = \[\n(?: .*\n)+\]\n": f"__all__ = [\n{everything}]\n",
    }
    for pattern, part in parts.items():
        text, count = re.subn(pattern, lambda _, part=part: part, text, flags=re.M)
        assert count == 1, f"{init} has {count} places like {pattern!r}"
    return text


def main() -> None:
    """Rewrite every file that says something else."""
    for init in lazy():
        if (text := written(init)) != init.read_text(encoding="utf-8"):
            init.write_text(text, encoding="utf-8")
            print(init.relative_to(ROOT))


if __name__ == "__main__":
    main()
