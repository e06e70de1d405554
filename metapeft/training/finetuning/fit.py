"""Plain training of an update, or of many at once, on data without episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metapeft.base.arguments import flag, whole
from metapeft.base.errors import stored_in
from metapeft.base.machine.devices import usable
from metapeft.base.machine.precision import check_autocast
from metapeft.base.state import digest
from metapeft.base.stored_settings import as_json, refuse_difference
from metapeft.learner.dropout_masks import check_dropout
from metapeft.learner.settings import of, of_backbone
from metapeft.training.finetuning.adapter import Adapter
from metapeft.training.finetuning.fitted import Fitted
from metapeft.training.finetuning.items import read_rows
from metapeft.training.finetuning.joint_step import JointStep
from metapeft.training.finetuning.loop import Loop
from metapeft.training.finetuning.metrics import Metric
from metapeft.training.finetuning.rows import Rows, said_of
from metapeft.training.finetuning.settings import FineTuning
from metapeft.training.finetuning.to_train import to_train
from metapeft.training.runs.run import Run
from metapeft.updates.attached import AttachedModel
from metapeft.updates.factors import by_parameter
from metapeft.updates.targets import Formats, Targets


def finetune(
    model: nn.Module | AttachedModel,
    train: Any,
    validation: Any = None,
    *,
    format: Formats = None,
    targets: Targets = "all",
    full: Sequence[str] = (),
    start: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]] | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 32,
    micro_batch: int | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 1e-3,
    schedule: Any = None,
    warmup: float = 0.0,
    options: Mapping[str, Any] | None = None,
    clip: float | None = None,
    loss: Callable[..., Any] = F.cross_entropy,
    metrics: Sequence[str | Metric] = (),
    monitor: str | None = None,
    patience: int | None = None,
    validate_every: int | None = None,
    checkpoint_every: int = 100,
    log_every: int = 10,
    bucket: bool = True,
    pad_id: int = 0,
    dropout: bool = False,
    autocast: torch.dtype | None = None,
    device: torch.device | str | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    stop_at: int | None = None,
    progress: bool = False,
    seed: int = 0,
) -> Any:
    """Train an update `W0 + Delta` of a frozen backbone on rows of inputs and targets.

    A list of T data sets trains T updates in one forward, each on its own batches, with its own optimiser, schedule
    and early stop: the same numbers as T trainings one after the other (with dropout, where padded lengths agree).

    Args:
        model: a backbone, which is not changed, or what `mp.attach` made of one (then without `format`).
        train: `(x, y)`, two tensors of as many rows (x may be a dict or tuple of tensors); a data set with `len()` and
            `[i]` that gives pairs or dicts with `"labels"`; a Hugging Face table; a `DataLoader` of these, which
            brings its batch size, order and collate function. A list: one data set for each of several updates.
        validation: the same, for the choice of the best state; for several updates a list, or one for all.
        format, targets: of the updates, as `mp.attach` takes them, `{pattern: format}` too. full: parameters that are
            trained as they are, such as `("classifier.*",)`.
        start: factors `name -> (1, ...)` to start from, or a list, one for each update.
        steps, epochs: how long; one of them. batch_size: rows a step. micro_batch: rows in one forward, for less
            memory; the gradient is that of the whole batch.
        optimizer, lr, options: as torch takes them. A decay pulls a full update towards 0, so its weight to W0.
        schedule: None, `"linear"`, `"cosine"`, or a function `(optimizer, steps) -> scheduler`.
        warmup: share of the steps in which the rate first rises. clip: largest norm of a gradient.
        loss: as `Learner` takes it, one value a row; or one a token `(rows, L)`, of which the mean over all tokens of
            a batch is taken that are not -100; or `mp.next_token_cross_entropy`.
        metrics: names (`"accuracy"`, `"f1"`, `"matthews"`, `"spearman"`, `"pearson"`, `"perplexity"`) or functions
            `(outputs, targets) -> number`. monitor: which of them, or `"loss"`, says what is best; None: the first.
        patience: validations without a better one, after which training stops. validate_every: in steps; None: after
            each epoch. checkpoint_every, log_every: in steps.
        bucket: batches of rows of about one length, where rows have lengths. pad_id: what `input_ids` are padded with.
        dropout: whether the backbone's dropout acts in training. autocast: `torch.bfloat16` for forwards in that type.
        device: where to train; None: where the backbone is (what `mp.attach` made stays there).
        run_dir: a new folder for settings, log and checkpoints; with `resume=True` a training that is there goes on,
            to the same end, bit for bit. stop_at: stop before this step. progress: a bar.
        seed: of the order of the rows, the updates' start and the dropout.

    Returns: a `Fitted`; for a list of data sets a list of them.

    Raises:
        ValueError: data, targets or settings that cannot be used, each with the reason; a stored run of other settings.
        NumericalError: a loss that is not finite.
        ImportError: a metric by name without torchmetrics.

    Example:
        >>> import metapeft as mp
        >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> fitted = finetune(torch.nn.Linear(3, 2), (x, (x[:, 0] > 0).long()), format=mp.LoRA(1), epochs=20, lr=0.1)
        >>> fitted.evaluate((x, (x[:, 0] > 0).long()))["loss"] < 0.2
        True
    """
    chosen = metrics if isinstance(metrics, str) else tuple(metrics)
    settings = FineTuning(
        steps, epochs, batch_size, micro_batch, optimizer, lr, schedule, warmup, options, clip, loss, chosen,
        monitor, patience, validate_every, checkpoint_every, log_every, bucket, pad_id, dropout, autocast, seed,
    )  # fmt: skip
    flag(resume=resume, progress=progress)
    whole(0, stop_at=0 if stop_at is None else stop_at)
    if resume and run_dir is None:
        raise ValueError("resume=True goes on with a run folder: give run_dir= too")
    if patience is not None and validation is None:
        raise ValueError(f"patience={patience} has no effect without validation=")
    attached = to_train(model, format, targets, full, seed, None if device is None else usable(device))
    check_autocast(autocast, next(iter(attached.module.parameters())))
    check_dropout(dropout, attached.module, ("factors",), seed)
    several = isinstance(train, list)
    data = train if several else [train]
    if not data:
        raise ValueError("train=[]: a list has a data set for each update")
    rows = [
        read_rows(one, attached.module, pad_id, _numbered("train", i, several)) for i, one in enumerate(data)
    ]
    judges = _validations(validation, len(rows), attached, pad_id)
    starts = _starts(start, attached, len(rows))
    adapters = [Adapter(*own, settings) for own in zip(starts, rows, judges)]
    loop = Loop(JointStep(attached, settings), adapters)
    if run_dir is None:
        loop.run(None, stop_at, progress)
    else:
        config = {"finetune": described(attached, settings, adapters)}
        _run_in(Path(run_dir), config, loop, resume, stop_at, progress)
    fitted = [Fitted(loop.joint, one.chosen(), one.log, one.step, one.best_step) for one in adapters]
    return fitted if several else fitted[0]


def _run_in(
    folder: Path, config: dict[str, Any], loop: Loop, resume: bool, stop_at: int | None, progress: bool
) -> None:
    if not (resume and (folder / "config.json").exists()):
        with Run.create(folder, config) as run:
            loop.save(run)
            loop.run(run, stop_at, progress)
        return
    with Run.open(folder) as run:
        refuse_difference("run_dir", run.config.get("finetune"), as_json(config)["finetune"])
        if run.checkpoint("latest").exists():
            with stored_in(run.checkpoint("latest")):
                loop.restore(run)
        loop.run(run, stop_at, progress)


def described(model: AttachedModel, settings: FineTuning, adapters: Sequence[Adapter]) -> dict[str, Any]:
    """What a run folder says about a training that starts now, and by what it is known to be the same later."""
    return {
        **settings.as_json(),
        "backbone": of_backbone(model.module),
        "weights": digest(model.parameters),
        "formats": {name: of(site.format) for name, site in model.sites.items()},
        "norm": model.norm,
        "train": [said_of(one.rows) for one in adapters],
        "validation": [None if one.validation is None else said_of(one.validation) for one in adapters],
        "start": [digest(one.factors) for one in adapters],
    }


def _validations(validation: Any, count: int, model: AttachedModel, pad_id: int) -> list[Rows | None]:
    several = isinstance(validation, list)
    if several and len(validation) != count:
        raise ValueError(
            f"validation is a list of {len(validation)} for {count} updates: one for each, or one for all"
        )
    given = validation if several else [validation]
    read = [
        None if one is None else read_rows(one, model.module, pad_id, _numbered("validation", i, several))
        for i, one in enumerate(given)
    ]
    return read if several else read * count


def _starts(start: Any, model: AttachedModel, count: int) -> list[Mapping[str, Tensor]]:
    several = isinstance(start, list | tuple)
    if several and len(start) != count:
        raise ValueError(f"start is a list of {len(start)} for {count} updates: one for each, or one for all")
    own = model.factors()
    starts: list[Mapping[str, Tensor]] = []
    for given in start if several else [start] * count:
        by_parameter(model.sites, own if given is None else given)
        for name, value in (given or {}).items():
            if value.shape != own[name].shape:
                raise ValueError(
                    f"start[{name!r}] has shape {tuple(value.shape)}, the update {tuple(own[name].shape)}: factors "
                    "come with a first axis of 1, as model.factors() gives them"
                )
        chosen = own if given is None else given
        starts.append({name: chosen[name].detach().to(own[name]) for name in own})
    return starts


def _numbered(name: str, index: int, several: bool) -> str:
    return f"{name}[{index}]" if several else name
