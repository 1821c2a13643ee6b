"""Fitting pix2pix to pairs of images, and translating with it (Isola et al. 2017).

`training.fit` is for one network and one loss; here two networks are fitted against each other, in
a plain loop. It can be killed at any moment and started again, as every other fit: everything
random is a function of the seed and of the number of the update, and the state on disk is replaced
in one step after every epoch. Nothing is pickled. In the folder of a fit lie

    settings.json           how it is fitted; another fit is refused the folder
    last.safetensors        all that is needed to go on; gone when the fit is finished
    history.csv             one row per epoch, with the columns `COLUMNS`
    generator.safetensors   the weights of the generator after the last update
    done.json               what the fit came to, and the checksum of these weights
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from nuctut import fits
from nuctut.files import (
    STRICT,
    Count,
    Malformed,
    Measure,
    locked,
    read_json,
    read_text,
    replacing,
    write_json,
)
from nuctut.training import NonFiniteLoss

SETTINGS, LAST, HISTORY = "settings.json", "last.safetensors", "history.csv"
WEIGHTS, DONE = "generator.safetensors", "done.json"
COLUMNS = ("step", "l1", "generator", "discriminator", "seconds")

L1 = 100.0  # weight of the absolute error beside what the discriminator says
LEARNING_RATE, BETAS = 2e-4, (0.5, 0.999)  # of both Adams
BRIGHT = 99.9  # percentile of an image that becomes 1; single bright pixels may lie far above


class PairedImages(Protocol):
    """What a translation is learned from, such as `artificial.Pairs`."""

    def __len__(self) -> int:
        """How many images there are."""

    def __getitem__(self, item: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """For (image, number of the draw): what to translate, and into what, (H, W) float32."""


@dataclass(frozen=True)
class TranslationSettings:
    """How to fit.

    Attributes:
        epochs: Rounds, each followed by a row of the history; the paper's are 130 (table S-II).
        updates: Of each network per epoch, by one pair each.
        device: "cpu" or a CUDA device such as "cuda".
        seed: Of the order, the draws and the dropout. The initial weights are the caller's.
    """

    epochs: int
    updates: int
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, as {self.seed} is.")


@checked(frozen=True, config=STRICT)
class Summary:
    """What a fit came to.

    Attributes:
        updates: How many were made of each network.
        seconds: Wall-clock time spent fitting, over all resumptions.
        weights: How many numbers the generator learned.
        weights_sha256: Of the file of the generator's weights, in hex digits.
    """

    updates: Count
    seconds: Measure
    weights: Count
    weights_sha256: fits.Digest


@checked(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class TranslationFit(Summary):
    """What a fit leaves behind.

    Attributes:
        history: One row per epoch, with the columns `COLUMNS`: number of updates so far, means of
            the absolute error in the images' range of −1…1 and of both networks' cross-entropies,
            seconds so far.
        …: Those of `Summary`.
    """

    history: pd.DataFrame


def fit(
    generator: nn.Module,
    discriminator: nn.Module,
    pairs: PairedImages,
    folder: Path | str,
    settings: TranslationSettings,
    *,
    progress: bool = True,
) -> TranslationFit:
    """Fit a generator, or go on where an earlier call was cut off, or return what one finished.

    Of each pair first the discriminator learns to tell the true translation from the generator's,
    then the generator to be taken for true and to come near it: cross-entropies and 100 · |error|,
    Adam at 2·10⁻⁴ with β₁ = 0.5 for both (Isola et al. 2017, sections 3.1 and 3.3; Kromp et al.,
    table S-II). Of two processes that ask for the same fit, the second waits for the first.

    Args:
        generator: Network with (1, 1, H, W) → (1, 1, H, W), −1…1; left with the weights that it
            ends with, rounded to float16 as those of all fits are.
        discriminator: Network with two (1, 1, H, W) → logits; of no use afterwards.
        pairs: See `PairedImages`. Images of a pair share one size that the generator can take.
        folder: Where all of it is kept.
        settings: See `TranslationSettings`.
        progress: Show a progress bar.

    Returns:
        The fit's result; the same one, whether it was interrupted or not.

    Raises:
        NonFiniteLoss: Naming the pair.
        ValueError: When the folder holds a fit under other settings.
        Malformed: When a file in it is damaged; the message names it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _claim(folder / SETTINGS, settings)
        if not (folder / DONE).exists():
            players = _Players(generator, discriminator, settings.device)
            history = _all_epochs(players, pairs, folder, settings, progress)
            fits.save_weights(generator, folder / WEIGHTS, torch.float16)
            write_json(folder / DONE, _summary(generator, folder / WEIGHTS, history))
            (folder / LAST).unlink(missing_ok=True)
        return load(generator, folder)


def load(generator: nn.Module, folder: Path | str) -> TranslationFit:
    """The result of a finished fit, its weights put into the generator.

    Args:
        generator: As it was fitted, of any weights.
        folder: Of the fit.

    Raises:
        FileNotFoundError: When there is no such folder, or its fit is not finished.
        Malformed: When a file in it is damaged; the message names it.
    """
    folder = Path(folder)
    summary = read_json(folder / DONE, Summary)
    fits.load_weights(generator, folder / WEIGHTS, summary.weights_sha256)
    try:
        history = pd.read_csv(folder / HISTORY)
        if tuple(history) != COLUMNS:
            raise ValueError(f"its columns must be {', '.join(COLUMNS)}")
    except (OSError, ValueError) as error:
        raise Malformed(f"{folder / HISTORY}: not the history of a fit ({error}).") from error
    return TranslationFit(**vars(summary), history=history)


def translate(generator: nn.Module, image: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """An image as a fitted generator translates it, such as an artificial one made to look natural.

    Its dropout stays at work, as in the original. What is brighter than the 99.9th percentile of
    the image is cut off there.

    Args:
        generator: As `fit` leaves it, on any device; its sides are multiples of its `stride`.
        image: (H, W), any real dtype; padded by reflection to a size that the generator can take.
        seed: Of the dropout; the same gives the same image, on one and the same machine.

    Returns:
        (H, W) of the image's dtype.
    """
    span = _Span.of(image)
    short = [(0, -length % generator.stride) for length in image.shape]
    scaled = span.scaled(np.pad(image, short, mode="symmetric"))
    device = next(generator.parameters()).device
    generator.train()
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(seed)
        made = generator(scaled.to(device))[0, 0].cpu().numpy()
    made = made[: image.shape[0], : image.shape[1]]
    back = span.low + (made + 1) / 2 * (span.high - span.low)
    whole = np.issubdtype(image.dtype, np.integer)
    return (np.rint(back) if whole else back).astype(image.dtype)


@dataclass(frozen=True)
class _Span:
    """The intensities that become −1 and 1, of a pair both by the image that is translated."""

    low: float
    high: float

    @classmethod
    def of(cls, image: np.ndarray) -> _Span:
        low, high = float(image.min()), float(np.percentile(image, BRIGHT))
        return cls(low, high if high > low else low + 1)

    def scaled(self, image: np.ndarray) -> Tensor:
        """(1, 1, H, W) float32 of (H, W)."""
        shares = (np.asarray(image, np.float32) - self.low) / (self.high - self.low)
        return torch.from_numpy(np.float32(2 * shares.clip(0, 1) - 1))[None, None]


# --- the loop ------------------------------------------------------------------------------------


class _Players:
    """Both networks, each with its Adam: one update of each, and the state of all four."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, device: str) -> None:
        self.device = device
        self.networks = {"generator": generator, "discriminator": discriminator}
        self.adams = {}
        for name, network in self.networks.items():
            network.to(device, memory_format=torch.channels_last).train()
            self.adams[name] = torch.optim.Adam(network.parameters(), LEARNING_RATE, BETAS)

    def update(self, artificial: np.ndarray, natural: np.ndarray) -> tuple[float, float, float]:
        """Learn from a pair; the absolute error and both networks' cross-entropies before it."""
        generator, judge = self.networks.values()
        span = _Span.of(artificial)
        source, target = (span.scaled(one).to(self.device) for one in (artificial, natural))
        made = generator(source)
        told = _entropy(judge(source, target), 1) + _entropy(judge(source, made.detach()), 0)
        self._step("discriminator", told / 2)
        judge.requires_grad_(False)
        taken = _entropy(judge(source, made), 1)
        error = F.l1_loss(made, target)
        self._step("generator", taken + L1 * error)
        judge.requires_grad_(True)
        return error.item(), taken.item(), told.item() / 2

    def _step(self, name: str, loss: Tensor) -> None:
        self.adams[name].zero_grad()
        loss.backward()
        self.adams[name].step()

    def state(self) -> dict[str, Tensor]:
        """All that a later update depends on, as numbers alone."""
        state = {}
        for name, network in self.networks.items():
            for key, tensor in network.state_dict().items():
                state[f"{name}/{key}"] = tensor.contiguous()
            for number, moments in self.adams[name].state_dict()["state"].items():
                for key, tensor in moments.items():
                    state[f"{name}/adam/{number}/{key}"] = tensor.contiguous()
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave.

        Raises:
            KeyError, RuntimeError: When it is of other networks.
        """
        for name, network in self.networks.items():
            network.load_state_dict({key: state[f"{name}/{key}"] for key in network.state_dict()})
            adam = self.adams[name].state_dict()
            for number in adam["param_groups"][0]["params"]:
                keys = ("step", "exp_avg", "exp_avg_sq")
                adam["state"][number] = {k: state[f"{name}/adam/{number}/{k}"] for k in keys}
            self.adams[name].load_state_dict(adam)


def _entropy(logits: Tensor, true: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, true))


def _all_epochs(
    players: _Players,
    pairs: PairedImages,
    folder: Path,
    settings: TranslationSettings,
    progress: bool,
) -> list[list[float]]:
    """Fit to the end, from where it stands; the rows of the history."""
    history = _taken_up(players, folder / LAST)
    total, begun = settings.epochs * settings.updates, time.perf_counter()
    spent = history[-1][-1] if history else 0.0
    bar = tqdm(
        total=total,
        initial=len(history) * settings.updates,
        desc="pix2pix",
        unit="update",
        disable=not progress,
    )
    with bar, torch.random.fork_rng():
        while len(history) < settings.epochs:
            losses = _epoch(players, pairs, len(history), settings, bar)
            seconds = spent + time.perf_counter() - begun
            history.append([(len(history) + 1) * settings.updates, *losses, seconds])
            bar.set_postfix(l1=f"{losses[0]:.3f}")
            _save(players, history, folder)
    return history


def _epoch(
    players: _Players,
    pairs: PairedImages,
    epoch: int,
    settings: TranslationSettings,
    bar: tqdm,
) -> np.ndarray:
    """One epoch's updates; (3,) means of what `_Players.update` returns."""
    rng = np.random.default_rng([settings.seed, epoch])
    rounds = [rng.permutation(len(pairs)) for _ in range(-(-settings.updates // len(pairs)))]
    order, losses = np.concatenate(rounds)[: settings.updates], []
    for number, which in enumerate(order.tolist(), start=epoch * settings.updates):
        torch.manual_seed(int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0]))
        losses.append(players.update(*pairs[which, number]))
        if not all(map(math.isfinite, losses[-1])):
            raise NonFiniteLoss(
                f"a loss became {losses[-1]} at update {number} on pair {which}; look at its image."
            )
        bar.update()
    return np.mean(losses, axis=0)


# --- files ---------------------------------------------------------------------------------------


def _claim(path: Path, settings: TranslationSettings) -> None:
    """Refuse a folder that another fit started under other settings."""
    mine = json.dumps(asdict(settings), indent=1)
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(mine)
    elif read_text(path) != mine:
        raise ValueError(
            f"{path.parent} holds a fit under other settings ({path.name}); "
            "give another folder, or delete this one to start anew."
        )


def _save(players: _Players, history: Sequence[Sequence[float]], folder: Path) -> None:
    """Where the fit stands, for whoever looks and for whoever goes on."""
    with replacing(folder / HISTORY) as path:
        pd.DataFrame(history, columns=COLUMNS).astype({"step": int}).to_csv(path, index=False)
    state = players.state() | {"history": torch.tensor(history, dtype=torch.float64)}
    with replacing(folder / LAST) as path:
        safetensors.torch.save_file(state, path)


def _taken_up(players: _Players, path: Path) -> list[list[float]]:
    """The history so far, the networks put where it ends; empty where nothing was done yet.

    Raises:
        Malformed: When the file is damaged or of other networks.
    """
    if not path.exists():
        return []
    try:
        state = safetensors.torch.load(path.read_bytes())
        history = state["history"].tolist()
        players.restore(state)
    except (safetensors.SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise Malformed(
            f"{path} is damaged or of other networks ({str(error).splitlines()[0]}), so the fit "
            "cannot go on from it: delete the file, and the fit starts anew."
        ) from error
    return history


def _summary(generator: nn.Module, weights: Path, history: Sequence[Sequence[float]]) -> Summary:
    learned = sum(weight.numel() for weight in generator.parameters())
    step, *_, seconds = history[-1]
    return Summary(int(step), seconds, learned, fits.checksum(weights))
