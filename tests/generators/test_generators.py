"""Every generator by its formula, its start, masks, the order of items and classes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import metapeft as mp
from metapeft.generators import (
    AttentionEncoder,
    ClassEncoder,
    Generator,
    MappingNet,
    PairEncoder,
    Support,
)
from metapeft.generators.table import registry
from tests.learner.helpers import images, learner_of

SEEDS = {"a.seed": (3,), "b.seed": (2, 2)}
SIZE, WAYS = 5, 3
Tensors = dict[str, torch.Tensor]
Formula = Callable[[Tensors, torch.Tensor, torch.Tensor], torch.Tensor]


def norm(z: torch.Tensor) -> torch.Tensor:
    return (z - z.mean()) / (z.var(correction=0) + 1e-5).sqrt()


def mean_by_hand(p: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return norm(x.mean(0))


def classes_by_hand(p: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The four statistics of one task, feature by feature in loops."""
    groups = [x[y == c] for c in sorted(set(y.tolist()))]
    total = x.var(0, correction=0)
    least = 1e-4 * total.mean()
    between = torch.stack([group.mean(0) for group in groups]).var(0, correction=0)
    squares = torch.stack([(group - group.mean(0)).square().sum(0) for group in groups]).sum(0)
    mean = torch.stack([group.mean(0) for group in groups]).mean(0)
    parts = [norm(mean), norm((between + least).log())]
    if len(x) > len(groups):
        ratio = ((squares / len(x) + least) / (total + least)).log()
        parts += [norm((squares / (len(x) - len(groups)) + least).log()), norm(ratio)]
    else:
        parts += [torch.zeros_like(mean), torch.zeros_like(mean)]
    return torch.cat(parts)


def pairs_by_hand(p: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    total, size = 0.0, (1 + y.square().mean(0)).sqrt()
    for point, target in zip(x, y):
        target = target / size
        shown = torch.cat([point, target, size.log(), torch.outer(point, target).flatten()])
        hidden = torch.relu(p["point1.weight"] @ shown + p["point1.bias"])
        total = total + torch.relu(p["point2.weight"] @ hidden + p["point2.bias"])
    return total / len(x)


def attention_by_hand(p: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    own = torch.stack([x[y == label].mean(0) for label in y])
    tokens = []
    for item, mean in zip(x, own):
        shown = torch.cat([norm(item), norm(mean), norm((item - mean) ** 2)])
        tokens.append(torch.relu(p["token.weight"] @ shown + p["token.bias"]))
    read = []
    for query in p["queries"]:
        weight = torch.stack([query @ token / 6**0.5 for token in tokens]).exp()
        read.append(sum(w * token for w, token in zip(weight / weight.sum(), tokens)))
    return torch.cat(read)


#: every generator of the table -> how it is made, its encoding of one task by hand, and whether it reads classes
GRID: dict[str, tuple[Any, Formula, str]] = {
    "mapping-net": (lambda: MappingNet(hidden=6), mean_by_hand, ""),
    "class-encoder": (lambda: ClassEncoder(hidden=6), classes_by_hand, "classes"),
    "pair-encoder": (lambda: PairEncoder(hidden=6, size=SIZE, outputs=2), pairs_by_hand, "targets"),
    "attention-encoder": (lambda: AttentionEncoder(hidden=6, queries=2), attention_by_hand, "classes"),
}
#: what takes a generator, or is shown to one, and is none by itself
OTHERS = {"OtherTask", "Blind", "Support", "Generator"}


def test_every_generator_is_in_the_grid() -> None:
    assert set(GRID) == set(registry.names)
    assert set(registry) == {*registry.names.values(), *OTHERS}


def parameters(net: Any) -> Tensors:
    random = torch.Generator().manual_seed(0)
    start = net.start(SEEDS, SIZE, random)
    return {name: torch.randn(value.shape, generator=random).double() for name, value in start.items()}


def support(kind: str, tasks: int = 2, shots: int = 3, seed: int = 1) -> Support:
    random = torch.Generator().manual_seed(seed)
    items = WAYS * shots
    x = torch.randn(tasks, items, SIZE, generator=random, dtype=torch.float64)
    if kind == "targets":
        return Support(x, torch.randn(tasks, items, 2, generator=random, dtype=torch.float64))
    return Support(x, (torch.arange(items) % WAYS).expand(tasks, -1), None, WAYS)


def written(p: Tensors, z: torch.Tensor, bound: float | None = None) -> Tensors:
    h = torch.relu(p["hidden.weight"] @ z + p["hidden.bias"])
    raw = {n: (p[f"{n}.weight"] @ h + p[f"{n}.bias"]).reshape(shape) for n, shape in SEEDS.items()}
    return raw if bound is None else {n: bound * torch.tanh(value / bound) for n, value in raw.items()}


@pytest.mark.parametrize("bound", [None, 0.5])
@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("name", GRID)
def test_the_formula_of_a_task(name: str, shots: int, bound: float | None) -> None:
    make, formula, kind = GRID[name]
    net = make()
    object.__setattr__(net, "bound", bound)
    p, shown = parameters(net), support(kind, shots=shots)
    found = net(p, SEEDS, shown)
    for t in range(2):
        assert shown.y is not None
        expected = written(p, formula(p, shown.features[t], shown.y[t]), bound)
        for seed in SEEDS:
            torch.testing.assert_close(found[seed][t], expected[seed], rtol=1e-9, atol=1e-9)


def test_the_formula_per_input() -> None:
    net = MappingNet(hidden=6, per="input")
    p, x = parameters(net), support("").features
    found = net(p, SEEDS, Support(x))
    for t in range(2):
        rows = [written(p, norm(x[t, b])) for b in range(x.shape[1])]
        for seed in SEEDS:
            torch.testing.assert_close(found[seed][t], torch.stack([row[seed] for row in rows]))


@pytest.mark.parametrize("name", GRID)
def test_training_starts_with_the_constant_seed(name: str) -> None:
    make, _, kind = GRID[name]
    net, shown = make(), support(kind)
    start = net.start(SEEDS, SIZE, torch.Generator().manual_seed(0))
    found = net({name: value.double() for name, value in start.items()}, SEEDS, shown)
    assert {seed: tuple(value.shape) for seed, value in found.items()} == {
        seed: (2, *shape) for seed, shape in SEEDS.items()
    }
    assert not any(value.any() for value in found.values())
    again = net.start(SEEDS, SIZE, torch.Generator().manual_seed(0))
    assert all(torch.equal(value, again[parameter]) for parameter, value in start.items())


@pytest.mark.parametrize("name", GRID)
def test_masked_items_do_not_count(name: str) -> None:
    """Also where the mask leaves a class out."""
    make, _, kind = GRID[name]
    net, shown = make(), support(kind, tasks=1)
    p = parameters(net)
    assert shown.y is not None
    for keep in ([0, 1, 2, 3, 4], [0, 1, 3, 4]):  # labels are 0 1 2 0 1 ..
        mask = torch.zeros(1, shown.features.shape[1], dtype=torch.bool)
        mask[0, keep] = True
        found = net(p, SEEDS, Support(shown.features, shown.y, mask, shown.ways))
        alone = net(p, SEEDS, Support(shown.features[:, keep], shown.y[:, keep], None, shown.ways))
        for seed in SEEDS:
            torch.testing.assert_close(found[seed], alone[seed], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GRID)
def test_the_order_of_items_and_the_numbers_of_classes_play_no_part(name: str) -> None:
    make, _, kind = GRID[name]
    net, shown = make(), support(kind)
    p, order = (
        parameters(net),
        torch.randperm(shown.features.shape[1], generator=torch.Generator().manual_seed(2)),
    )
    assert shown.y is not None
    y = shown.y[:, order]
    if kind != "targets":
        y = torch.tensor([2, 0, 1])[y]
    found = net(p, SEEDS, Support(shown.features[:, order], y, None, shown.ways))
    for seed, value in net(p, SEEDS, shown).items():
        torch.testing.assert_close(found[seed], value, rtol=1e-9, atol=1e-9)


def test_one_shot_reads_other_parts_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    from metapeft.generators.class_encoder import _say_one_shot

    _say_one_shot.cache_clear()
    net = ClassEncoder(hidden=6)
    p = parameters(net)
    for shots in (1, 1, 3):
        net(p, SEEDS, support("classes", shots=shots))
    assert sum("no variance inside" in record.message for record in caplog.records) == 1
    few, many = (support("classes", tasks=1, shots=shots) for shots in (1, 3))
    for parts, same in ((("within",), True), (("mean",), False)):
        own = ClassEncoder(hidden=6, parts=parts)
        p = parameters(own)
        one, other = (
            own(p, SEEDS, support("classes", tasks=1, shots=1, seed=seed))["a.seed"] for seed in (1, 2)
        )
        assert torch.equal(one, other) == same
    assert not torch.equal(
        *(ClassEncoder(hidden=6)(parameters(net), SEEDS, each)["a.seed"] for each in (few, many))
    )


def test_dead_features_and_equal_items_stay_finite_with_gradients() -> None:
    for name, (make, _, kind) in GRID.items():
        net, shown = make(), support(kind)
        features = shown.features.clone()
        features[..., 0] = 0.0
        features[1] = 1.0
        features.requires_grad_()
        p = parameters(net)
        found = net(p, SEEDS, Support(features, shown.y, None, shown.ways))
        (gradient,) = torch.autograd.grad(sum(value.sum() for value in found.values()), features)
        assert all(value.isfinite().all() for value in (*found.values(), gradient)), name


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: MappingNet(hidden=0), "hidden"),
        (lambda: MappingNet(hidden=True), "hidden"),
        (lambda: MappingNet(per="tasks"), "per"),  # type: ignore[arg-type]
        (lambda: MappingNet(bound=0.0), "bound"),
        (lambda: ClassEncoder(parts=("means",)), "did you mean 'mean'"),
        (lambda: ClassEncoder(parts=()), "at least one"),
        (lambda: ClassEncoder(parts=("mean", "mean")), "at most once"),
        (lambda: PairEncoder(outputs=0), "outputs"),
        (lambda: AttentionEncoder(queries=0), "queries"),
    ],
)
def test_bad_settings(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_labels_of_the_wrong_kind() -> None:
    net, pairs = ClassEncoder(hidden=4), PairEncoder(hidden=4, size=SIZE)
    with pytest.raises(ValueError, match="PairEncoder reads regression"):
        net(parameters(net), SEEDS, support("targets"))
    with pytest.raises(ValueError, match="ClassEncoder reads"):
        pairs(parameters(pairs), SEEDS, support("classes"))
    with pytest.raises(ValueError, match="outputs=2"):
        pairs(parameters(pairs), SEEDS, support("targets"))


def test_generators_that_no_learner_can_call() -> None:
    class Old(Generator):
        def __call__(self, parameters, seeds, features, mask):  # type: ignore[no-untyped-def, override]
            return {}

    class PerInput(ClassEncoder):
        per = "input"

    with pytest.raises(ValueError, match=r"signature of metapeft 0\.2"):
        learner_of("cp", head="prototypes", generator=Old(), outer=("generator",))
    with pytest.raises(ValueError, match="reads the labels"):
        PerInput()


@pytest.mark.parametrize("name", ["class-encoder", "attention-encoder"])
def test_the_hypergradient_through_labels(name: str) -> None:
    """Against finite differences along one direction of all generator parameters, with masks."""
    learner, _ = learner_of(
        "cp",
        inner=mp.inner.SGD(2, 0.1),
        head="prototype-init",
        generator=GRID[name][0](),
        outer=("generator",),
    )
    for batch in (images(), images(masked=True)):
        found, random, eps = learner.hypergradient(batch), torch.Generator().manual_seed(3), 1e-6
        direction = {n: torch.randn(v.shape, generator=random).to(v) for n, v in found.grads.items()}
        values = []
        for sign in (1, -1):
            for n, value in direction.items():
                learner.variables[n].add_(sign * eps * value)
            values.append(float(learner.hypergradient(batch).value))
            for n, value in direction.items():
                learner.variables[n].sub_(sign * eps * value)
        product = sum(float((found.grads[n] * value).sum()) for n, value in direction.items())
        torch.testing.assert_close(product, (values[0] - values[1]) / (2 * eps), rtol=1e-5, atol=1e-9)
