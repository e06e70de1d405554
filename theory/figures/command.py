"""`theory figures`: data, pictures and the one-page summary.

Each figure is a PNG, an SVG and a CSV of the same name; `index.html` shows them all and is rewritten after
each, so that an interrupted run leaves a page of what is done.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import jinja2
import matplotlib as mpl
from rich.console import Console

from metapeft.base.arguments import flag, whole
from metapeft.base.files import write_atomically
from theory.figures import plots, rows
from theory.figures.captions import CAPTIONS, FILES, PUBLISHED, PUBLISHED_RANK
from theory.figures.done import Done, save_figure
from theory.figures.extras import EXTRAS, extra
from theory.figures.page_picture import page_picture
from theory.figures.rows import Row
from theory.figures.style import NAMES
from theory.figures.sweeps import RUNS, STEPS, SWEEPS, TOLERANCE, Protocol, linear_sweeps, settings
from theory.models.problems import LinearSetting


@dataclass
class Shown:
    """One figure of the summary."""

    name: str
    stem: str
    picture: str
    broad: bool
    caption: str
    caveats: list[str]
    ends: list[tuple[float, str, float, float, float]]


def names(only: str | None, protocol: Protocol) -> list[str]:
    """The figures that `--only` names; all of the protocol's if it is None.

    Raises:
        ValueError: an unknown name, or an extra figure under the paper's protocol, which has none.

    Example:
        >>> names("d, rank", "paper")
        ['d', 'rank']
    """
    if protocol not in ("corrected", "paper"):
        raise ValueError(f"protocol={protocol!r}: allowed are 'corrected' and 'paper'")
    known = [*SWEEPS, *(EXTRAS if protocol == "corrected" else ()), "shallow"]
    if only is None:
        return known
    asked = [name.strip() for name in only.split(",") if name.strip()]
    if not asked:
        raise ValueError("--only names no figure; leave it out for all of them")
    for name in asked:
        if name in EXTRAS and protocol == "paper":
            raise ValueError(f"--only: {name!r} is not in the paper; draw it with --protocol corrected")
        if name not in known:
            raise ValueError(f"--only: unknown figure {name!r}; known are {', '.join(known)}")
    return list(dict.fromkeys(asked))


def draw(
    out: Path,
    protocol: Protocol = "corrected",
    only: str | None = None,
    seed: int = 0,
    resume: bool = False,
) -> list[Path]:
    """Make the figures in a folder.

    Args:
        out: the folder, made if missing.
        protocol: corrected, or as published.
        only: comma-separated names; None for all.
        seed: of the draws.
        resume: draw figures whose data the same command has computed before from that.

    Returns:
        The files written.

    Raises:
        ValueError: an unknown figure, a negative seed, an `out` that is a file.
    """
    wanted = names(only, protocol)
    whole(0, seed=seed)
    flag(resume=resume)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    console, start = Console(), time.perf_counter()
    done = Done(out, protocol, seed, resume)
    shown: dict[str, Shown] = {}

    def add(made: Shown) -> None:
        shown[made.name] = made
        done.add(made.name, made.stem)
        _summary(
            out,
            protocol,
            [shown[name] for name in CAPTIONS if name in shown],
            seed,
            time.perf_counter() - start,
        )
        console.print(f"{time.perf_counter() - start:6.1f} s  {made.stem}", highlight=False)

    for name in [
        name for name in CAPTIONS if name in wanted or ("shallow" in wanted and name.startswith("shallow-"))
    ]:
        if (data := done.rows(name, _stem(name))) is not None:
            add(_save(out, name, data, protocol))
    if all(name in shown for name in CAPTIONS if name.startswith("shallow-")):
        wanted = [name for name in wanted if name != "shallow"]
    plain = [name for name in wanted if name != "shallow" and name not in shown]
    if len(plain) == 1:
        add(make(out, plain[0], protocol, seed))
    elif plain:
        # The rank sweep goes on longest, so it starts first.
        queue = sorted(plain, key=lambda name: name != "rank")
        with pool() as workers:
            for future in as_completed([workers.submit(make, out, name, protocol, seed) for name in queue]):
                add(future.result())
    if "shallow" in wanted:
        for name, data in shallow_rows(protocol, seed, console).items():
            add(_save(out, name, data, protocol))
    kinds = ("csv", "png", "svg")
    return [*(out / f"{one.stem}.{kind}" for one in shown.values() for kind in kinds), out / "index.html"]


def pool() -> ProcessPoolExecutor:
    """Two workers at most; started afresh, because a fork of a process with threads may hang."""
    return ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=get_context("spawn"))


def shallow_rows(protocol: Protocol, seed: int, console: Console) -> dict[str, list[Row]]:
    """The rows of the shallow figures, one process a setting, the largest first; minutes."""
    from theory.figures import shallow_sweeps
    from theory.models.shallow import Schedule

    schedule = Schedule(plateau=0.005 if protocol == "corrected" else 0.0)
    start, done = time.perf_counter(), {}
    with pool() as workers:
        found = {
            workers.submit(shallow_sweeps.one_setting, one, schedule, seed): one
            for one in sorted(shallow_sweeps.all_settings(), key=lambda one: -one.T * one.d)
        }
        for future in as_completed(found):
            one = found[future]
            done[one] = future.result()
            seconds = time.perf_counter() - start
            console.print(f"{seconds:6.1f} s  shallow net, d = {one.d}, T = {one.T}", highlight=False)
    return shallow_sweeps.rows(done)


def make(out: Path, name: str, protocol: Protocol, seed: int) -> Shown:
    """Compute and save one figure that needs nothing from the others, in whichever process."""
    data = linear_sweeps([name], protocol, seed)[name] if name in SWEEPS else extra(name, seed)
    return _save(out, name, data, protocol)


def _save(out: Path, name: str, data: list[Row], protocol: Protocol) -> Shown:
    stem = _stem(name)
    rows.write(data, out / f"{stem}.csv")
    caveats = _caveats(name, data)
    published = protocol == "paper" and name in SWEEPS
    caption = PUBLISHED_RANK if published and name == "rank" else CAPTIONS[name]
    note = " ".join([*([PUBLISHED] if published else []), caption])
    options = {"noise": LinearSetting().sigma ** 2} if published and name == "rank" else {}
    figure = plots.PLOTS[name](name, data, note, **options)
    picture = page_picture(lambda: plots.PLOTS[name](name, data, **options))
    # Text stays text in the SVG, and neither file depends on the clock.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "theory"}):
        save_figure(figure, out / f"{stem}.png", dpi=130)
        figure.set_layout_engine("none")  # laid out once, for both files
        save_figure(figure, out / f"{stem}.svg", metadata={"Date": None})
    methods = list(dict.fromkeys(row.method for row in data))
    ends = [
        (value, NAMES[method], float(losses.mean()), float(losses.min()), float(losses.max()))
        for method in methods
        for value, losses in rows.exact(data, method).items()
    ]
    return Shown(name, stem, picture, figure.get_figwidth() > 7, note, caveats, sorted(ends))


def _stem(name: str) -> str:
    return FILES.get(name, f"sweep-{name}" if name in SWEEPS else name)


def _caveats(name: str, data: list[Row]) -> list[str]:
    """Conditions that a sweep's settings miss, and curves that went on past the published steps."""
    found = [
        caveat if where == "here" or caveat.startswith(where) else f"{where}: {caveat}"
        for where, setting in _settings(name)
        for caveat in setting.caveats()
    ]
    ends = {(row.value, row.method, row.run): row.loss for row in data if not isinstance(row.step, int)}
    last: dict[tuple[float, str, int], Row] = {}
    for row in data if name in SWEEPS else []:
        if isinstance(row.step, int):
            key = (row.value, row.method, row.run)
            last[key] = max(last.get(key, row), row, key=lambda row: int(row.step))
    longer = {key: row for key, row in last.items() if int(row.step) > STEPS[name]}
    if longer:
        close = sum(abs(row.loss / ends[key] - 1) <= TOLERANCE for key, row in longer.items())
        found.append(
            f"{len(longer)} of {len(last)} curves went on past the published {STEPS[name]} steps (the longest to "
            f"{max(int(row.step) for row in longer.values())}); {close} of them ended within 1 % of their exact end "
            "points"
        )
    return list(dict.fromkeys(found))


def _settings(name: str) -> list[tuple[str, LinearSetting]]:
    """The settings that a figure shows, and what to call them."""
    if name in SWEEPS:
        return [(f"{name} = {value}", setting) for value, setting, _ in settings(name)]
    if name.startswith("shallow-"):
        from theory.figures import shallow_sweeps

        swept = name.removeprefix("shallow-")
        return [(f"{swept} = {value}", setting) for value, setting in shallow_sweeps.settings(name).items()]
    if name == "tie":
        return [("here", LinearSetting(T=2))]
    if name == "retraining-error":
        return [(f"T = {T}", LinearSetting(T=T)) for T in (3, 16)]
    return [("here", LinearSetting())]


def _summary(out: Path, protocol: Protocol, shown: list[Shown], seed: int, seconds: float) -> None:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("theory.figures", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("summary.html").render(
        protocol=protocol, published=PUBLISHED, figures=shown, seed=seed, runs=RUNS, seconds=seconds
    )
    write_atomically(out / "index.html", page.encode())
