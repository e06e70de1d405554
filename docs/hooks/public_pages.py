"""Every public name, and the page of the reference on which it stands."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import metapeft
from tests.public_names import sources

ROOT = Path(__file__).parents[2]
# page -> its title, the package whose names it lists, and what one writes before a name
PAGES = {
    "training": ("Learners and training", "metapeft", "mp"),
    "methods": ("Methods", "metapeft.methods", "mp.methods"),
    "updates": ("Updates", "metapeft.updates", "mp"),
    "heads": ("Heads", "metapeft.heads", "mp"),
    "generators": ("Generators", "metapeft.generators", "mp"),
    "hypergradients": ("Hypergradients", "metapeft.hypergradients", "mp"),
    "inner": ("Inner solvers", "metapeft.inner", "mp.inner"),
    "episodes": ("Episodes", "metapeft.episodes", "mp"),
    "datasets": ("Data sets", "metapeft.datasets", "mp"),
    "backbones": ("Backbones", "metapeft.backbones", "mp.backbones"),
    "report": ("Reports", "metapeft.experiments.report", "mp.report"),
}


def names(page: str) -> dict[str, str]:
    """Name as one writes it -> where it is defined, `module.attribute`, of one page.

    Example:
        >>> names("heads")["mp.Ridge"], names("training")["mp.Learner"]
        ('metapeft.heads.ridge.Ridge', 'metapeft.learner.learner.Learner')
    """
    _, package, prefix = PAGES[page]
    own = sources(package)
    if package == "metapeft":
        own = {name: own[name] for name in metapeft._NAMES}
    return {f"{prefix}.{name}": source.replace(":", ".") for name, source in own.items()}


def summary(source: str) -> str:
    """The first line of the docstring of `module.attribute`; the file is read, not imported."""
    module, _, attribute = source.rpartition(".")
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            said = ast.get_docstring(node)
            if said:
                return said.partition("\n\n")[0].replace("\n", " ")
    raise ValueError(f"{source} has no docstring")


def strings(package: str) -> dict[str, list[str]]:
    """Python name -> the strings that stand for it where one may be given."""
    found: dict[str, list[str]] = {}
    if package != "metapeft":
        for string, name in importlib.import_module(f"{package}.table").registry.names.items():
            found.setdefault(name, []).append(string)
    return found


def page(name: str) -> str:
    """The markdown of one page: its names in order, each with all that its docstring says."""
    title, package, _ = PAGES[name]
    text, short = f"# {title}\n\n", strings(package)
    for written, source in names(name).items():
        own = short.get(written.rpartition(".")[2], [])
        label = written.rpartition(".")[2]
        text += f"::: {source}\n    options:\n      heading: {written}\n      toc_label: {label}\n\n"
        if own:
            text += f"As a string: `{'`, `'.join(map(repr, own))}`.\n\n"
    return text


def index() -> str:
    """The page that lists them all."""
    text = (
        "# API\n\nEvery public name, by what it is for; `mp` is `metapeft`, and everything is imported on first use. "
        "A name of a folder is found under the folder's name too: `mp.Ridge` is `mp.heads.Ridge`. `mp.__version__` is "
        "the version. Each folder has a `registry`, the table of its names.\n\n"
    )
    for name, (title, package, _) in PAGES.items():
        also = "" if package == "metapeft" else f"`mp.{name}`\n\n"
        text += f"## [{title}]({name}.md)\n\n{also}| name | |\n| --- | --- |\n"
        for written, source in names(name).items():
            text += f"| [`{written}`][{source}] | {summary(source).replace('|', chr(92) + '|')} |\n"
        text += "\n"
    return text


def pages() -> dict[str, str]:
    """All pages of the reference: name of the file -> markdown."""
    return {"index": index(), **{name: page(name) for name in PAGES}}
