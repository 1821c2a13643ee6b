"""What lies in the folder of a fit, and whether it can be trusted.

    network.json       what the network is, so that anybody can build it again: `Description`
    settings.json      how it is fitted; another fit is refused the folder
    history.csv        one row per epoch
    best.safetensors   the weights with the smallest validation loss
    last.ckpt          all that is needed to go on
    done.json          what the fit came to, and where its weights come from: `Summary`

A fit is finished when done.json is there. The weights must then have the checksum that it names:
a network whose file has changed since is another network than the one that was measured.
"""

from __future__ import annotations

import csv
import hashlib
import zipfile
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import safetensors.torch
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn
from typing_extensions import TypedDict

from nuctut.files import STRICT, Count, Malformed, Measure, Text, read_json, read_text, replacing

DESCRIPTION, SETTINGS, HISTORY = "network.json", "settings.json", "history.csv"
WEIGHTS, LAST, DONE = "best.safetensors", "last.ckpt", "done.json"
COLUMNS = ("step", "train_loss", "val_loss", "learning_rate", "seconds")

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Code = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class Data(TypedDict):
    """What a network learned from: of its images' `SampleSet`, and how many there were."""

    name: Text
    source: Text
    fingerprint: Text
    images: Count


@dataclass(frozen=True, config=STRICT)
class Description:
    """What a fit's folder says of the network in it, so that anybody can build it again.

    Attributes:
        experiment: One of `experiments.NAMES`.
        variant, seed: Of the fit.
        settings: All fields of the experiment's `Settings`.
        pretrained: Whether the network started from published weights.
        data: What it learned from.
        code: Digest of the code that decided what the fit computes, see `experiments.code_digest`.
    """

    experiment: Text
    variant: Text
    seed: Count
    settings: dict[str, Any]
    pretrained: bool
    data: Data
    code: Code


@dataclass(frozen=True, config=STRICT)
class Summary:
    """What a fit came to, and where its weights come from.

    Attributes:
        updates, images_seen: How many updates were made, and items they saw.
        seconds: Wall-clock time spent fitting, over all resumptions.
        weights: How many numbers were learned.
        device, precision: What it ran on, in words.
        peak_memory_gb: Highest use while fitting, of the process on a CPU, of the device's
            allocator on a GPU; GB = 10⁹ bytes.
        git_commit: The checkout's commit, "-dirty" added when it differed from the files; several,
            joined by ", ", where the fit went on under another one; None without git.
        code: As in `Description`.
        started, ended: ISO 8601 times, UTC.
        weights_sha256: Of the file of the weights, in hex digits.
    """

    updates: Count
    images_seen: Count
    seconds: Measure
    weights: Count
    device: Text
    precision: Text
    peak_memory_gb: Measure | None
    git_commit: str | None
    code: Code
    started: Text
    ended: Text
    weights_sha256: Digest


@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class FitResult(Summary):
    """What a fit leaves behind.

    Attributes:
        best: The file of the weights with the smallest validation loss.
        history: One row per epoch, with the columns `COLUMNS`.
        …: Those of `Summary`.
    """

    best: Path
    history: pd.DataFrame

    @property
    def budget(self) -> dict[str, Any]:
        """What the fit cost, as a record keeps it."""
        names = ("updates", "images_seen", "seconds", "weights", "device", "precision")
        return {name: getattr(self, name) for name in (*names, "peak_memory_gb")}

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights come from, as a record keeps it."""
        names = ("git_commit", "code", "weights_sha256", "started", "ended")
        return {name: getattr(self, name) for name in names}


def read_description(folder: Path) -> Description:
    """What a fit's folder says of its network.

    Raises:
        FileNotFoundError: When the folder holds no fit of a chapter.
        Malformed: Naming the file and what is wrong in it.
    """
    if not (folder / DESCRIPTION).exists():
        raise FileNotFoundError(f"{folder} holds no fit of a chapter: there is no {DESCRIPTION}.")
    return read_json(folder / DESCRIPTION, Description)


def read_summary(folder: Path) -> Summary:
    """What a finished fit came to.

    Raises:
        FileNotFoundError: When the folder holds no fit that is finished.
        Malformed: Naming the file and what is wrong in it.
    """
    if not (folder / DONE).exists():
        raise FileNotFoundError(f"{folder} holds no finished fit: there is no {DONE}.")
    return read_json(folder / DONE, Summary)


def read_history(folder: Path) -> pd.DataFrame:
    """One row per epoch so far; none where there is no history yet.

    Raises:
        Malformed: Naming the file and what is wrong in it.
    """
    path = folder / HISTORY
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS, dtype=float)
    lines = read_text(path).splitlines()
    try:
        header, *rows = list(csv.reader(lines)) or [()]
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns must be {', '.join(COLUMNS)}")
        frame = pd.DataFrame([[float(cell) for cell in row] for row in rows], columns=COLUMNS)
    except (ValueError, csv.Error) as error:
        raise Malformed(f"{path}: not the history of a fit ({error}).") from error
    return frame.astype({"step": int})


def finished(model: nn.Module, folder: Path | str) -> FitResult | None:
    """The result of a fit that ran to its end in this folder, its best weights put into `model`.

    None where there is none, or none that is finished.

    Raises:
        Malformed: When a file of it is damaged, or the weights are not those it ended with.
    """
    folder = Path(folder)
    if not (folder / DONE).exists():
        return None
    summary = read_summary(folder)
    load_weights(model, folder / WEIGHTS, summary.weights_sha256)
    return FitResult(**vars(summary), best=folder / WEIGHTS, history=read_history(folder))


def save_weights(model: nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a network's weights, whole or not at all.

    Args:
        model: The network.
        path: Of the file.
        dtype: What the learned numbers are rounded to. Statistics of a normalisation, which are
            few and may be tiny, stay as they are, and so does what would overflow.
    """
    learned = {name for name, _ in model.named_parameters()}
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    for name in learned & state.keys():
        if torch.isfinite(rounded := state[name].to(dtype)).all():
            state[name] = rounded
    with replacing(path) as temporary:
        safetensors.torch.save_file(state, temporary)


def load_weights(model: nn.Module, path: Path | str, sha256: str | None = None) -> None:
    """Put the weights of a file that `save_weights` wrote into a network.

    Args:
        model: The network they are of.
        path: Of the file; it holds numbers alone, never code.
        sha256: What the file's checksum must be; None where nothing tells.

    Raises:
        Malformed: When there is no such file, it is damaged or another than expected, holds
            numbers that are not finite, or is not of this network.
    """
    again = "delete its folder and run the chapter again, and the network is fitted anew."
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise Malformed(f"{path} cannot be read ({error.strerror}): {again}") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise Malformed(f"{path} is damaged or was changed, its sha256 is not {sha256}: {again}")
    try:
        state = safetensors.torch.load(content)
        model.load_state_dict(state)
    except (safetensors.SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise Malformed(f"{path} holds no weights of this network ({reason}): {again}") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Malformed(f"{path}: {name} holds weights that are NaN or infinite: {again}")


def checksum(path: Path) -> str:
    """sha256 of a file's content, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_last(path: Path) -> None:
    """Refuse a file to go on from that is not as it was written.

    Raises:
        Malformed: Naming it, and what to do.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch's format, with a checksum of each part
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
        damaged = str(error)
    if damaged is not None:
        raise Malformed(
            f"{path} is damaged ({damaged}), so the fit cannot go on from it: delete the file, and "
            "the fit starts anew."
        )
