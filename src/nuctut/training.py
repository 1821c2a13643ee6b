"""Fitting a network: what it is fed, one `fit`, and what is kept of it.

A fit can be killed at any moment and started again: everything random is a function of the seed and
of the number of the update, and the state on disk is replaced in one step after every epoch, and
within long ones about twice a minute.
"""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from nuctut import fits
from nuctut.files import locked, own, read_text, replacing, write_json
from nuctut.fits import FitResult, finished
from nuctut.machine import (
    PRECISIONS,
    cores,
    device_name,
    git_commit,
    peak_memory_gb,
    precision_on,
    reset_peak_memory,
)
from nuctut.targets import Normalised, corner_tiles, dihedral, standardise

GAMMA_STEP = 3  # pixels
KEPT_EVERY = 30.0  # seconds within an epoch
COMPILED_FROM = 2000  # updates on a GPU that a minute of compiling is worth
UNSEEN = 16  # updates on a GPU whose losses are looked at together: each look waits for the device
STEP, DECAY, LEAST_RATE = 1000, 0.95, 1e-5  # of the stepwise schedule: updates, factor, floor
NO_CODE = "0" * 16  # the digest of code that nobody named
ARITHMETIC = {"fp32": "32-true", "bf16": "bf16-mixed"}
DEVICES = {"auto": "auto", "cpu": "cpu", "gpu": "gpu"}


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the batch."""


@dataclass(frozen=True)
class FitSettings:
    """How to fit.

    Attributes:
        epochs: Rounds of training, each followed by a validation.
        updates: Updates per epoch; None means that every item is used once.
        batch_size: Items per update and device.
        learning_rate: Of Adam; its peak where the schedule is "one-cycle".
        schedule: "constant", "one-cycle" (linear warm-up over a tenth of the updates, then a
            cosine down to zero), or "stepwise" (0.95 times as much after every 1,000 updates, but
            no less than 1e-5; Mercadier et al., section 3.1).
        l2: λ of the penalty λ Σ w² on the kernels of all convolutions but the last.
        precision: Of `machine.precision_on`; bf16 is autocast, weights stay fp32.
        device: "auto" (a GPU where there is one), "cpu" or "gpu".
        devices: How many of them.
        patience: Stop after this many epochs without a better validation loss; None never stops.
        seed: Of the order, the crops and the dropout. The initial weights are the caller's.
    """

    epochs: int
    updates: int | None = None
    batch_size: int = 1
    learning_rate: float = 1e-5
    schedule: str = "constant"
    l2: float = 1e-4
    precision: str = "fp32"
    device: str = "auto"
    devices: int = 1
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("precision", PRECISIONS),
            ("device", DEVICES),
            ("schedule", ("constant", "one-cycle", "stepwise")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}."
                )
        for name in ("epochs", "batch_size", "devices", "updates", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        for name in ("learning_rate", "l2"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number, 0 or more, not {value}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, as {self.seed} is.")
        if self.device == "gpu" and not torch.cuda.is_available():
            raise ValueError('There is no GPU here: give device="auto" or "cpu".')


@dataclass(frozen=True)
class Jitter:
    """How random crops vary, beyond their place and orientation.

    Attributes:
        gain: Half-width of a random factor on the normalised intensities, 0 for none.
        colour: Half-width of a random factor on each channel, and of what is added to it.
        zoom: Largest random factor on the scale, and its inverse the smallest; 1 for none.
        gamma: Half-width of the logarithm of a random exponent on the intensities, counted from 0
            at a channel's darkest pixel to 1 at its brightest; 0 for none.
    """

    gain: float = 0.0
    colour: float = 0.0
    zoom: float = 1.0
    gamma: float = 0.0


NO_JITTER = Jitter()


class CornerTiles(Dataset):
    """The paper's tiles: each image's four corners in all eight orientations (section 2.1).

    Args:
        images: (H, W) or (H, W, C) intensities, any real dtype.
        classes: (H, W) uint8 class maps of the same sizes.
        keys: Names, for error messages.
        size: Side of the tiles in pixels.
        augment: All eight orientations, or only the first.
        scale: Passed to `targets.standardise`, which normalises every tile by itself.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        classes: Sequence[np.ndarray],
        keys: Sequence[str],
        size: int = 512,
        augment: bool = True,
        scale: str = "linear",
    ) -> None:
        self.images, self.classes, self.keys = images, classes, keys
        self.scale = scale
        self.orientations = 8 if augment else 1
        self.tiles = [
            (i, t) for i, one in enumerate(classes) for t in corner_tiles(one.shape, size)
        ]

    def __len__(self) -> int:
        return len(self.tiles) * self.orientations

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        tile, orientation = divmod(item[0], self.orientations)
        which, window = self.tiles[tile]
        image = standardise(self.images[which][window], self.scale)
        return _item(image, self.classes[which][window], orientation, self.keys[which])


class RandomCrops(Dataset):
    """Random square crops in random orientations, of images normalised as a whole.

    Args:
        images, classes, keys, scale: As for `CornerTiles`.
        size: Side of the crops in pixels; smaller images are padded by reflection.
        seed: Position, orientation and jitter are a function of it and of the number of the draw.
        jitter: How crops vary beyond their place and orientation.
        shares: How often each image is drawn, such as `balanced` gives; None: all alike.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        classes: Sequence[np.ndarray],
        keys: Sequence[str],
        size: int = 256,
        scale: str = "linear",
        seed: int = 0,
        jitter: Jitter = NO_JITTER,
        shares: np.ndarray | None = None,
    ) -> None:
        self.images = [_at_least(standardise(image, scale), size) for image in images]
        self.classes = [_at_least(one, size) for one in classes]
        self.keys, self.size, self.seed, self.jitter = keys, size, seed, jitter
        self.shares = shares

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        which, draw = item
        rng = np.random.default_rng([self.seed, draw])
        pair = self.images[which], self.classes[which]
        image, classes, orientation = random_crop(rng, *pair, self.size, self.jitter)
        return _item(image, classes, orientation, self.keys[which])


def balanced(groups: Sequence[Hashable]) -> np.ndarray:
    """How often to draw each item, so that large groups do not drown small ones.

    A group as a whole is drawn as often as the square root of its size says: halfway between as
    often as it comes, and as often as every other.

    Args:
        groups: Of each item.

    Returns:
        (items,) float64 probabilities; their sum is 1.
    """
    sizes = Counter(groups)
    weights = np.array([sizes[group] ** -0.5 for group in groups])
    return weights / weights.sum()


def random_crop(
    rng: np.random.Generator,
    image: np.ndarray | Normalised,
    classes: np.ndarray,
    size: int,
    jitter: Jitter,
) -> tuple[np.ndarray, np.ndarray, int]:
    """A square piece of an image and of its classes, and an orientation to put them in.

    Args:
        rng: Decides.
        image: (H, W) or (H, W, C) float32, normalised, or what becomes that where it is cropped.
        classes: (H, W) integers, classes or labels.
        size: Side in pixels; an image that is smaller is taken whole along that side.
        jitter: See there. A zoom takes in no more than the image holds.

    Returns:
        The image's piece, the classes' piece, and a number for `targets.dihedral`.
    """
    side = size
    if jitter.zoom > 1:
        side = round(size * jitter.zoom ** rng.uniform(-1, 1))
        side = max(min(side, *classes.shape), min(size, *classes.shape) // 2)
    window = []
    for length in classes.shape:
        start = int(rng.integers(max(0, length - side) + 1))
        window.append(slice(start, start + side))
    orientation = int(rng.integers(8))
    if jitter.gamma:
        exponent = math.exp(jitter.gamma * rng.uniform(-1, 1))
        image = _with_gamma(image, tuple(window), exponent)
    else:
        image = image[tuple(window)]
    classes = classes[tuple(window)]
    if side != size and min(classes.shape) == side:
        image, classes = _resized(image, size, "bilinear"), _resized(classes, size, "nearest")
    image = image * np.float32(1 + jitter.gain * rng.uniform(-1, 1))
    if jitter.colour and image.ndim == 3:
        factors, offsets = jitter.colour * rng.uniform(-1, 1, (2, image.shape[2]))
        image = image * np.float32(1 + factors) + np.float32(offsets)
    return image, classes, orientation


def _with_gamma(
    image: np.ndarray | Normalised, window: tuple[slice, slice], exponent: float
) -> np.ndarray:
    """A window of an image whose intensities are raised to a power, and normalised again."""
    low, high = image.min((0, 1)), image.max((0, 1))
    span = np.where(high > low, high - low, 1)

    def raised(pixels: np.ndarray) -> np.ndarray:
        return ((pixels - low) / span) ** np.float32(exponent)

    some = raised(image[::GAMMA_STEP, ::GAMMA_STEP])  # mean and deviation need not every pixel
    mean, deviation = some.mean((0, 1)), some.std((0, 1))
    return (raised(image[window]) - mean) / np.where(deviation > 0, deviation, 1)


def _resized(array: np.ndarray, size: int, mode: str) -> np.ndarray:
    """An (H, W) or (H, W, C) array as (size, size) or (size, size, C), in its own dtype."""
    layers = torch.from_numpy(np.atleast_3d(array).astype(np.float32)).movedim(-1, 0)[None]
    resized = nn.functional.interpolate(layers, size=(size, size), mode=mode)[0]
    return resized.movedim(0, -1).reshape(size, size, *array.shape[2:]).numpy().astype(array.dtype)


def fit(
    model: nn.Module,
    loss: nn.Module | None,
    train: Dataset,
    validation: Dataset,
    folder: Path | str,
    settings: FitSettings,
    *,
    code: str = NO_CODE,
    progress: bool = True,
) -> FitResult:
    """Fit a network, or go on where an earlier call was cut off, or return what one finished.

    Of two processes that ask for the same fit, the second waits for what the first finishes.

    Args:
        model: Network with (B, channels, H, W) → (B, C, H, W) logits; left with its best weights.
            One that is not to be fitted by Adam names another class of `torch.optim` as its
            `optimiser`.
        loss: Called with logits and (B, H, W) uint8 classes. None where the network has a loss of
            its own: then `model.loss(batch)` is called, also for validation.
        train, validation: `CornerTiles` or `RandomCrops`, or what such a network needs; a
            data set's method `collate`, if it has one, makes the batches.
        folder: Where all of it is kept, see `fits`.
        settings: See `FitSettings`.
        code: Digest of the code that decides what the fit computes; kept, not looked at.
        progress: Show a progress bar.

    Returns:
        The fit's result; the same one, whether it was interrupted or not.

    Raises:
        NonFiniteLoss: Naming the keys of the batch.
        ValueError: When the folder holds a fit under other settings.
        Malformed: When a file in it is damaged; the message names it.
    """
    folder = own(Path(folder))
    _claim(folder, settings)
    # Of several devices each has a process, and all of them fit together.
    with nullcontext() if settings.devices > 1 else locked(folder):
        if (result := finished(model, folder)) is None:
            keeper = _Keeper(folder, settings, code)
            _run(_Fitting(model, loss, settings), train, validation, keeper, progress)
            result = finished(model, folder)
    return result


def _run(
    module: _Fitting,
    train: Dataset,
    validation: Dataset,
    keeper: _Keeper,
    progress: bool,
) -> None:
    settings, last = keeper.settings, keeper.folder / fits.LAST
    if last.exists():
        fits.check_last(last)
    keeper.order = sampler = _Order(train, settings)
    collate, ahead = getattr(train, "collate", None), _ahead(_device(settings))
    how = {"collate_fn": collate, **ahead}
    loader = DataLoader(train, settings.batch_size, sampler=sampler, **how)
    checks = DataLoader(
        validation,
        min(4, settings.batch_size),
        sampler=[(i, i) for i in range(len(validation))],
        **how,
    )
    module.total_updates = settings.epochs * len(loader)
    with warnings.catch_warnings():
        # What Lightning says of loading, logging and resuming does not concern this fit.
        warnings.filterwarnings("ignore", module="lightning")
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        trainer = L.Trainer(
            accelerator=DEVICES[settings.device],
            devices=settings.devices,
            precision=ARITHMETIC[keeper.precision],
            max_epochs=settings.epochs,
            callbacks=[keeper],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=keeper.folder,
        )
        trainer.fit(
            module,
            loader,
            checks,
            ckpt_path=last if last.exists() else None,
            weights_only=True,
        )


def _ahead(device: str) -> dict[str, Any]:
    """How batches are made ahead of their updates, as `DataLoader` takes it.

    A GPU should never wait for them, so that processes of their own make them. On a CPU these would
    take the cores that the updates need.
    """
    workers = min(8, cores() - 1) if device == "cuda" else 0
    if not workers:
        return {}
    return {"num_workers": workers, "persistent_workers": True, "pin_memory": True}


class _Fitting(L.LightningModule):
    """One network and its loss, as Lightning wants them."""

    def __init__(self, model: nn.Module, loss: nn.Module | None, settings: FitSettings) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)
        self.loss = loss
        self.settings = settings
        self.total_updates = 0
        self.unseen: list[tuple[int, list[str], Tensor]] = []  # update, keys and loss of batches
        self.answer: Callable[[Tensor], Tensor] = self.model.forward  # in training

    def configure_optimizers(self) -> dict[str, Any]:
        convolutions = [m for m in self.model.modules() if isinstance(m, nn.Conv2d)]
        # ConvTranspose2d is no Conv2d: it joins here, while the head (the last one) stays free.
        convolutions = convolutions[:-1] + [
            m for m in self.model.modules() if isinstance(m, nn.ConvTranspose2d)
        ]
        kernels = [m.weight for m in convolutions]
        chosen = {id(w) for w in kernels}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        # Adam adds `weight_decay` × w to the gradient, and λ Σ w² has the gradient 2 λ w.
        kind = getattr(self.model, "optimiser", torch.optim.Adam)
        optimiser = kind(
            [
                {"params": kernels, "weight_decay": 2 * self.settings.l2},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self.settings.learning_rate,
            eps=1e-7,  # Keras' default, which the paper's "default hyperparameters" are
            fused=True if self._on_gpu() else None,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._rate)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _rate(self, step: int) -> float:
        if self.settings.schedule == "constant":
            return 1.0
        if self.settings.schedule == "stepwise":
            floor = LEAST_RATE / max(self.settings.learning_rate, LEAST_RATE)
            return max(DECAY ** (step // STEP), floor)
        warm_up = max(1, self.total_updates // 10)
        if step < warm_up:
            return (step + 1) / warm_up
        falling = max(1, self.total_updates - warm_up)
        return (1 + math.cos(math.pi * (step - warm_up) / falling)) / 2

    def on_fit_start(self) -> None:
        """Compile what the updates of a long fit on a GPU compute, over and over, for one shape."""
        if self._on_gpu() and self.loss is not None and self.total_updates >= COMPILED_FROM:
            torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
            self.answer = torch.compile(self.model.forward)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        # Dropout depends on the seed and the update alone, so that a resumed run repeats it.
        torch.manual_seed(
            int(
                np.random.SeedSequence(
                    [self.settings.seed, self.global_step, self.global_rank]
                ).generate_state(1)[0]
            )
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        how = {"on_step": False, "on_epoch": True, "prog_bar": True, "sync_dist": True}
        self.log("train_loss", loss, batch_size=len(batch["key"]), **how)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        size = len(batch["key"])
        self.log("val_loss", self._loss(batch), prog_bar=True, batch_size=size, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self.look()

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        if self.loss is None:
            loss = self.model.loss(batch)
        else:
            image = batch["image"].contiguous(memory_format=torch.channels_last)
            answer = self.answer if self.training else self.model
            loss = self.loss(answer(image), batch["classes"])
        self.unseen.append((self.global_step, batch["key"], loss.detach()))
        if len(self.unseen) >= (UNSEEN if self._on_gpu() else 1):
            self.look()
        return loss

    def look(self) -> None:
        """Stop at a loss that is not finite, among those that nobody has looked at yet."""
        seen, self.unseen = self.unseen, []
        if not seen or torch.isfinite(torch.stack([loss for *_, loss in seen])).all():
            return
        update, keys, loss = next(one for one in seen if not torch.isfinite(one[2]))
        raise NonFiniteLoss(
            f"the loss became {loss.item()} at update {update} on the images {', '.join(keys)}; "
            "look at them, or lower learning_rate."
        )

    def _on_gpu(self) -> bool:
        return next(self.model.parameters()).is_cuda


class _Keeper(L.Callback):
    """Keeps the best and the last state, the history, the patience, and where all comes from."""

    def __init__(self, folder: Path, settings: FitSettings, code: str) -> None:
        self.folder, self.settings, self.code = folder, settings, code
        self.precision = precision_on(_device(settings), settings.precision)
        self.order: _Order | None = None
        self.history: list[dict[str, float]] = []
        self.within = 0  # updates of the epoch under way
        self.loss = torch.zeros((), dtype=torch.float64)  # of these updates, summed over items
        self.items = 0  # in them
        self.seconds = 0.0
        self.begun = time.perf_counter()
        self.started = _now()
        self.commits: list[str | None] = []

    def state_dict(self) -> dict[str, Any]:
        names = ("history", "within", "loss", "items", "seconds", "started", "commits")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.order.go_on(len(self.history), self.within)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.begun = time.perf_counter()
        if (commit := git_commit()) not in self.commits:
            self.commits.append(commit)
        reset_peak_memory(str(trainer.strategy.root_device))
        if self._exhausted():
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: L.Trainer, module: _Fitting, outputs: dict[str, Tensor], batch: Any, _: int
    ) -> None:
        """Count, and within an epoch keep the state from time to time."""
        self.within += 1
        size = len(batch["key"])
        self.loss = self.loss.to(module.device) + size * outputs["loss"].detach().double()
        self.items += size
        # Several devices would have to agree on when.
        late = time.perf_counter() - self.begun > KEPT_EVERY and self.settings.devices == 1
        if late and self.within < trainer.num_training_batches:
            module.look()
            self._count_seconds()
            self._save_last(trainer)

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self.begun
        self.begun = now

    def on_train_epoch_end(self, trainer: L.Trainer, module: _Fitting) -> None:
        self._count_seconds()
        loss = trainer.strategy.reduce(self.loss / self.items, reduce_op="mean")
        self.within, self.loss, self.items = 0, torch.zeros_like(self.loss), 0
        row = {
            "step": trainer.global_step,
            "train_loss": float(loss),
            "val_loss": float(trainer.callback_metrics["val_loss"]),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": self.seconds,
        }
        better = not self.history or row["val_loss"] < min(r["val_loss"] for r in self.history)
        self.history.append(row)
        # The best goes first: killed in between, the next run repeats this epoch and writes the
        # same best again.
        if trainer.is_global_zero:
            with replacing(self.folder / fits.HISTORY) as path:
                pd.DataFrame(self.history).to_csv(path, index=False)
        if trainer.is_global_zero and better:
            # Rounded before anything is measured, so that what ships is what was measured.
            fits.save_weights(module.model, self.folder / fits.WEIGHTS, torch.float16)
        self._save_last(trainer)
        if self._exhausted():
            trainer.should_stop = True

    def _save_last(self, trainer: L.Trainer) -> None:
        """Every process must take part in saving; the first one puts the file in its place."""
        if trainer.is_global_zero:
            with replacing(self.folder / fits.LAST) as path:
                trainer.save_checkpoint(path)
        else:
            trainer.save_checkpoint(self.folder / fits.LAST)

    def _exhausted(self) -> bool:
        if self.settings.patience is None or not self.history:
            return False
        losses = [row["val_loss"] for row in self.history]
        return len(losses) - 1 - int(np.argmin(losses)) >= self.settings.patience

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the summary that marks the fit as finished."""
        if trainer.is_global_zero:
            write_json(self.folder / fits.DONE, self._summary(trainer, module))
        trainer.strategy.barrier()  # no process looks for the summary before it is there

    def _summary(self, trainer: L.Trainer, module: _Fitting) -> fits.Summary:
        device = str(trainer.strategy.root_device)
        return fits.Summary(
            updates=int(self.history[-1]["step"]),
            images_seen=len(self.history) * len(self.order) * self.settings.devices,
            seconds=self.seconds,
            weights=sum(w.numel() for w in module.model.parameters() if w.requires_grad),
            device=device_name(device),
            precision=self.precision,
            peak_memory_gb=peak_memory_gb(device),
            git_commit=", ".join(filter(None, self.commits)) or None,
            code=self.code,
            started=self.started,
            ended=_now(),
            weights_sha256=fits.checksum(self.folder / fits.WEIGHTS),
        )


class _Order(Sampler[tuple[int, int]]):
    """(item, number of the draw), in an order that depends on the seed and the epoch alone.

    Items that have `shares` are drawn with these probabilities, others in turn.
    """

    def __init__(self, items: Dataset, settings: FitSettings) -> None:
        self.items, self.settings = len(items), settings
        self.shares = getattr(items, "shares", None)
        self.world = settings.devices
        self.count = self.items // self.world
        if settings.updates is not None:
            self.count = settings.updates * settings.batch_size
        self.epoch = 0
        self.begun = (0, 0)  # an epoch, and how many of this process's items were used in it

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def go_on(self, epoch: int, updates: int) -> None:
        """Leave out what an epoch's first updates have used."""
        # processes that make batches ahead begin before `set_epoch` is called
        self.epoch = epoch
        self.begun = epoch, updates * self.settings.batch_size

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        total = self.count * self.world
        rng = np.random.default_rng([self.settings.seed, self.epoch])
        if self.shares is not None:
            order = rng.choice(self.items, total, p=self.shares)
        else:
            rounds = [rng.permutation(self.items) for _ in range(-(-total // self.items))]
            order = np.concatenate(rounds)[:total]
        epoch, used = self.begun
        first = rank + self.world * (used if epoch == self.epoch else 0)
        for position in range(first, total, self.world):
            yield int(order[position]), self.epoch * total + position


def _claim(folder: Path, settings: FitSettings) -> None:
    """Refuse a folder that another fit started under other settings."""
    path = folder / fits.SETTINGS
    mine = json.dumps(asdict(settings), indent=1)
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(mine)
    elif read_text(path) != mine:
        raise ValueError(
            f"{folder} holds a fit under other settings (settings.json); "
            "give another folder, or delete this one to start anew."
        )


def _device(settings: FitSettings) -> str:
    return "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _item(image: np.ndarray, classes: np.ndarray, orientation: int, key: str) -> dict[str, Any]:
    channels = image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)
    return {
        "image": torch.from_numpy(dihedral(channels, orientation).copy()),
        "classes": torch.from_numpy(dihedral(classes, orientation).copy()),
        "key": key,
    }


def _at_least(array: np.ndarray, size: int) -> np.ndarray:
    extra = [(0, max(0, size - length)) for length in array.shape[:2]]
    extra += [(0, 0)] * (array.ndim - 2)
    return np.pad(array, extra, mode="symmetric") if np.any(extra) else array
