"""Ranks that are known: teachers with planted updates, and what every rule for ranks finds of them.

    python -m benchmarks.planted_ranks                    (goes on where it stopped; about an hour on one core)
    python -m benchmarks.planted_ranks --teachers 1 --steps 50 --out /tmp/x.json        (a look)

A teacher is a frozen residual network of random weights with an update of rank 0 to 8 on every layer, drawn evenly. Its
student sees 1,400 noisy outputs for training and 600 for validation, and may use rank 8 everywhere. Each rule then
gives ranks, at the true total unless it chooses its own. At these ranks an update is trained anew on all 2,000 rows,
all rules in one forward, and measured on 2,000 other inputs against outputs without noise.
"""

from __future__ import annotations

import itertools
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cyclopts import App
from torch import Tensor, nn

import metapeft as mp
from metapeft.base.files import write_atomically
from metapeft.training.runs.environment import environment

app = App(help=__doc__, version_flags=[])
RESULT = Path(__file__).parent / "results" / "planted_ranks.json"
LARGEST = 8
NOISES = (0.1, 0.3)
CONTROLS = 2  # random and shuffled ranks a teacher


@dataclass(frozen=True)
class Teacher:
    """One problem: sizes, the spectrum of its planted updates, its seed.

    Args:
        spectrum: singular values: `"flat"`, all 0.6; `"falling"`, 0.9 and each next 0.8 of it; `"uneven"`, between 0.2
            and 1, their logarithms evenly.

    Example:
        >>> len(TEACHERS), Teacher(2, 5, "flat", 0).ranks().keys()
        (21, dict_keys(['layers.0.weight', 'layers.1.weight']))
    """

    depth: int
    width: int
    spectrum: str
    seed: int

    @property
    def name(self) -> str:
        """What rows are found by."""
        return f"{self.depth} layers of {self.width}, {self.spectrum}, seed {self.seed}"

    def ranks(self) -> dict[str, int]:
        """The planted ranks."""
        drawn = torch.randint(0, LARGEST + 1, (self.depth,), generator=self._generator(1)).tolist()
        return {f"layers.{i}.weight": min(rank, self.width) for i, rank in enumerate(drawn)}

    def student(self) -> Residual:
        """The network without the planted updates."""
        return Residual(self.depth, self.width, self._generator(2))

    def planted(self) -> Residual:
        """The network with them."""
        net, generator = self.student(), self._generator(3)
        for layer, rank in zip(net.layers, self.ranks().values()):
            u, v = (
                torch.linalg.qr(torch.randn(self.width, self.width, generator=generator))[0][:, :rank]
                for _ in range(2)
            )
            layer.weight.data += u * self._singular_values(rank, generator) @ v.T
        return net

    def rows(self, count: int, noise: float, part: int) -> tuple[Tensor, Tensor]:
        """Inputs, and the teacher's outputs for them with noise."""
        generator = self._generator(10 + part)
        x = torch.randn(count, self.width, generator=generator)
        with torch.no_grad():
            y = self.planted()(x)
        return x, y + noise * torch.randn(y.shape, generator=generator)

    def _singular_values(self, rank: int, generator: torch.Generator) -> Tensor:
        if self.spectrum == "flat":
            return torch.full((rank,), 0.6)
        if self.spectrum == "falling":
            return 0.9 * 0.8 ** torch.arange(rank, dtype=torch.float32)
        return 0.2 * 5.0 ** torch.rand(rank, generator=generator)

    def _generator(self, part: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + part)


class Residual(nn.Module):
    """`x + tanh(W x) / 2`, layer after layer."""

    def __init__(self, depth: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(depth)])
        for layer in self.layers:
            layer.weight.data = torch.randn(width, width, generator=generator) / width**0.5

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x)) / 2
        return x


SPECTRA = ("flat", "falling", "uneven")
SIZES = [
    *(
        (depth, width, spectrum)
        for spectrum, width, depth in itertools.product(SPECTRA, (16, 24, 32), (3, 6))
    ),
    *((12, 24, spectrum) for spectrum in SPECTRA),
]
TEACHERS = tuple(Teacher(*size, seed) for seed, size in enumerate(SIZES))


def ranks_by_rule(
    teacher: Teacher, train: Any, validation: Any, options: Mapping[str, Any]
) -> tuple[dict[str, dict[str, int]], dict[str, float]]:
    """Every rule's ranks, and the seconds of the searches."""
    net, truth = teacher.student(), teacher.ranks()
    total = sum(truth.values())
    logits = {name: torch.zeros(LARGEST) for name in truth}
    given = {"format": mp.LoRA(LARGEST), **options}
    begun = time.monotonic()
    trained = mp.finetune(net, train, **given)
    terms = mp.canonical(trained.model, trained.factors)
    batches = zip(*(part.split(options["batch_size"]) for part in train))
    scores = mp.scores(trained.model, terms, batches, options["loss"])
    seconds = {"Fisher": time.monotonic() - begun}
    prune = mp.search_ranks(net, train, validation, method="prune", **given)
    prune_total = mp.search_ranks(net, train, validation, method="prune", total=total, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that logits have hardly moved: the table says what came of it
        # a scale of k, for the softmax divides each term by k: the update can be as large as the others'
        own = {**given, "format": mp.LoRA(LARGEST, float(LARGEST**2))}
        autolora = mp.search_ranks(net, train, validation, method=mp.AutoLoRARanks("unroll", lr=0.01), **own)
    values = {name: terms[f"{name}.A"][0].norm(dim=1) * terms[f"{name}.B"][0].norm(dim=0) for name in truth}
    rules = {
        "planted": truth,
        "uniform": mp.ranks(logits, "uniform", total=total),
        "AutoLoRA, threshold": autolora.ranks,
        "AutoLoRA, total": mp.ranks(autolora.logits, "total", total=total),
        "singular values, total": mp.ranks(mp.Scores(values, {}), "total", total=total),
        "Fisher, total": mp.ranks(scores, "total", total=total),
        "prune, total": prune_total.ranks,
        "prune": prune.ranks,
    }
    for seed in range(CONTROLS):
        rules[f"random {seed}"] = mp.ranks(logits, "random", total=total, seed=seed)
        rules[f"shuffled {seed}"] = shuffled(truth, seed)
    seconds |= {"prune": prune.seconds, "AutoLoRA": autolora.seconds}
    return rules, seconds


def shuffled(truth: Mapping[str, int], seed: int) -> dict[str, int]:
    """The true ranks, dealt to other layers at random."""
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed)).tolist()
    values = list(truth.values())
    return {name: values[place] for name, place in zip(truth, order)}


def retrained(
    teacher: Teacher,
    rules: Mapping[str, Mapping[str, int]],
    train: Any,
    test: Any,
    options: Mapping[str, Any],
) -> dict[str, float]:
    """The test loss of updates trained anew at every rule's ranks, all in one forward.

    A term of which A and B are 0 stays 0, so that an update of rank 8 with some of them 0 is one of a lower rank.
    """
    model = mp.attach(teacher.student(), mp.LoRA(LARGEST))
    starts = []
    for ranks in rules.values():
        start = model.factors()
        for name, rank in ranks.items():
            start[f"{name}.A"][:, rank:] = 0.0
        starts.append(start)
    many = mp.finetune(model, [train] * len(starts), start=starts, **options)
    return {name: one.evaluate(test)["loss"] for name, one in zip(rules, many)}


def measured(teacher: Teacher, noise: float, steps: int, batch_size: int, lr: float) -> dict[str, Any]:
    """The row of one teacher and noise."""
    train, validation = teacher.rows(1400, noise, 0), teacher.rows(600, noise, 1)
    test = teacher.rows(2000, 0.0, 2)
    options: dict[str, Any] = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "schedule": "cosine", "loss": F.mse_loss,
        "options": {"weight_decay": 0.0},
    }  # fmt: skip
    rules, seconds = ranks_by_rule(teacher, train, validation, options)
    both = tuple(torch.cat(parts) for parts in zip(train, validation))
    losses = retrained(teacher, rules, both, test, options)
    truth = rules["planted"]
    found = {
        name: {
            "ranks": list(ranks.values()),
            "within_1": sum(abs(rank - truth[layer]) <= 1 for layer, rank in ranks.items()) / len(truth),
            "loss": losses[name],
        }
        for name, ranks in rules.items()
    }
    return {
        "teacher": asdict(teacher),
        "name": teacher.name,
        "noise": noise,
        "seconds": seconds,
        "rules": found,
    }


@app.default
def main(
    *,
    teachers: int = len(TEACHERS),
    noise: tuple[float, ...] = NOISES,
    steps: int = 500,
    batch_size: int = 128,
    lr: float = 0.02,
    out: Path = RESULT,
) -> None:
    """Measure all teachers that the file does not hold yet."""
    torch.set_num_threads(1)
    settings = {"steps": steps, "batch_size": batch_size, "lr": lr}
    kept: dict[str, Any] = {"settings": settings, "environment": environment(), "rows": []}
    if out.exists():
        kept = json.loads(out.read_text(encoding="utf-8"))
        if kept["settings"] != settings:
            raise ValueError(f"{out} was measured with {kept['settings']}, not {settings}: name another file")
    done = {(row["name"], row["noise"]) for row in kept["rows"]}
    for teacher in TEACHERS[:teachers]:
        for level in noise:
            if (teacher.name, level) in done:
                continue
            begun = time.monotonic()
            row = measured(teacher, level, steps, batch_size, lr)
            kept["rows"].append(row)
            write_atomically(out, f"{json.dumps(kept, indent=1)}\n".encode())
            shown = {name: round(found["within_1"], 2) for name, found in row["rules"].items()}
            print(f"{teacher.name}, noise {level}, {time.monotonic() - begun:.0f} s: {shown}", flush=True)


if __name__ == "__main__":
    app()
