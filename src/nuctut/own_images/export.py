"""A trained network for other tools: an ONNX file, or a package of bioimage.io around one.

Either takes camera counts and gives probabilities: what `nuctut` does before and after the network
is part of the graph, so that no tool needs a recipe. Both are tried out before they are kept.
"""

from __future__ import annotations

import functools
import importlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.io import imsave
from torch import Tensor, nn

from nuctut import datasets, experiments, fits, inference, scoreboard, targets
from nuctut.files import replacing

LIBRARIES = ("onnx", "onnxruntime", "bioimageio.core")  # the extra `export`
TOLERANCE = 1e-4  # between probabilities of the exported network and of ours
SMALLEST = 64  # pixels; a multiple of every network's stride
EXAMPLE_SHAPE = (128, 128)  # both sides multiples too
LICENCE = "BSD-3-Clause"  # of the weights, as of the code that made them
CLASSES = {1: ["nucleus"], 3: ["background", "nucleus", "separation"]}
CHANNELS = {1: ["intensity"], 3: ["red", "green", "blue"]}


class FromCounts(nn.Module):
    """A network with all that `inference.predict` does around it, for whole images.

    Args:
        network: (B, channels, H, W) → (B, C, H, W) logits.
        scale: Of `targets.standardise`, which it repeats for every image of a batch by itself.
        largest: The largest value of the images' dtype, for the scale "range".

    Shapes:
        (B, channels, H, W) float32 camera counts → (B, C, H, W) float32 probabilities.
    """

    def __init__(self, network: nn.Module, scale: str, largest: int) -> None:
        super().__init__()
        self.network, self.scale, self.largest = network, scale, largest

    def forward(self, counts: Tensor) -> Tensor:
        """Probabilities of camera counts; see the class for shapes."""
        logits = self.network(self._normalised(counts))
        return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()

    def _normalised(self, counts: Tensor) -> Tensor:
        if self.scale == "range":
            return counts / self.largest
        over = {"dim": (2, 3), "keepdim": True}
        pixels = counts - counts.amin(**over)
        if self.scale == "log":
            pixels = pixels.log1p()
        pixels = pixels - pixels.mean(**over)
        deviation = pixels.square().mean(**over).sqrt()
        return pixels / torch.where(deviation > 0, deviation, torch.ones_like(deviation))


@dataclass(frozen=True)
class _Exported:
    """A fit that is being exported, and a simulated image to try it on.

    Attributes:
        trained: The network.
        made: What its folder says of it.
        image: (H, W) or (H, W, 3), in the dtype of the data set it learned from.
    """

    trained: experiments.Trained
    made: fits.Description
    image: np.ndarray

    @property
    def largest(self) -> int:
        """The largest value that the images' dtype holds."""
        return int(np.iinfo(self.image.dtype).max)

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(C, H, W) float32, as `nuctut` computes them, in fp32 whatever the fit's precision."""
        scale = self.trained.settings.scale
        normalise = functools.partial(targets.standardise, scale=scale)
        return inference.predict(self.trained.model, image, normalise=normalise)


def export(folder: Path | str, output: Path | str) -> Path:
    """Writes the network of a finished fit for other tools, tries it out, and returns its path.

    Nothing is left behind where it does not do what `nuctut` does.

    Args:
        folder: Of the fit.
        output: A new file; its ending chooses the format: `.onnx`, or `.zip` for bioimage.io.

    Raises:
        ValueError: For another ending, or a network that gives no probability map.
        FileExistsError: When `output` exists.
        FileNotFoundError: When there is no such fit, or no folder for `output`.
        RuntimeError: When a library is missing, or what was written does not reproduce our output.
    """
    output = Path(output)
    write = _writer_of(output)
    _check_libraries()
    fit = _taken_up(Path(folder))
    with tempfile.TemporaryDirectory(prefix="nuctut-export-") as scratch:
        written = write(fit, Path(scratch))
        with replacing(output) as path:
            shutil.copyfile(written, path)
    return output


def _writer_of(output: Path) -> Callable[[_Exported, Path], Path]:
    """What writes a file of that ending, if it may be written."""
    writers = {".onnx": _write_onnx, ".zip": _write_package}
    if output.suffix.lower() not in writers:
        raise ValueError(
            f"{output}: the name must end in .onnx, or in .zip for a package of bioimage.io."
        )
    if output.exists():
        raise FileExistsError(f"{output} exists already: give another name, or delete it first.")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent} is no folder: make it first.")
    return writers[output.suffix.lower()]


def _check_libraries() -> None:
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise RuntimeError(
                f"Exporting needs {name}, which cannot be imported ({error}): "
                "pip install 'nuctut[export]'"
            ) from error


def _taken_up(folder: Path) -> _Exported:
    trained = experiments.load(folder, device="cpu")
    if trained.rule is None:
        raise ValueError(
            f"{folder}: {trained.variant} gives nuclei one by one, not a probability map, and "
            "cannot be exported; use `nuctut predict` for it."
        )
    made = fits.read_description(folder)
    first = datasets.specs(made.data["name"])[0]
    return _Exported(trained, made, trained.channelled(_simulated_image(first)))


def _simulated_image(spec: datasets.DatasetSpec) -> np.ndarray:
    """An invented image of a data set: real ones are not ours to hand round."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = datasets.simulate(spec.name, Path(scratch) / spec.name, shape=EXAMPLE_SHAPE)
        image = spec.read(folder, spec.split_keys(folder, "test")[0]).image
    return image[: EXAMPLE_SHAPE[0], : EXAMPLE_SHAPE[1]]


def _as_batch(image: np.ndarray) -> np.ndarray:
    """An (H, W) or (H, W, 3) image as (1, channels, H, W) float32."""
    return np.moveaxis(np.atleast_3d(image), -1, 0)[None].astype(np.float32)


# --- ONNX ----------------------------------------------------------------------------------------


def _write_onnx(fit: _Exported, folder: Path) -> Path:
    path = folder / "network.onnx"
    network = FromCounts(fit.trained.model, fit.trained.settings.scale, fit.largest).eval()
    sizes = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        # The checks of shapes that it warns of hold for all shapes; `_check_onnx` tries two.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        # The newer exporter needs onnxscript.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (torch.from_numpy(_as_batch(fit.image)),),
            path,
            dynamo=False,
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_axes={"image": sizes, "probabilities": sizes},
        )
    _check_onnx(fit, path)
    return path


def _check_onnx(fit: _Exported, path: Path) -> None:
    """Raise RuntimeError unless the file gives our probabilities, on two sizes of image."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for image in (fit.image, fit.image[:SMALLEST]):
        (found,) = session.run(None, {"image": _as_batch(image)})[0]
        difference = np.abs(found - fit.probabilities(image)).max()
        if not difference <= TOLERANCE:  # NaN too
            raise RuntimeError(
                f"The exported network differs from ours by up to {difference:.2g} in probability, "
                f"more than {TOLERANCE}; nothing was written. Please report this."
            )


# --- bioimage.io ---------------------------------------------------------------------------------


def _write_package(fit: _Exported, folder: Path) -> Path:
    from bioimageio.spec import save_bioimageio_package
    from loguru import logger

    network = _write_onnx(fit, folder)
    np.save(folder / "test-input.npy", _as_batch(fit.image))
    np.save(folder / "test-output.npy", fit.probabilities(fit.image)[None])
    imsave(folder / "cover.png", _cover(fit), check_contrast=False)
    (folder / "README.md").write_text(_readme(fit), encoding="utf-8")
    path = folder / "package.zip"
    logger.disable("bioimageio")  # it would tell every step
    try:
        save_bioimageio_package(_description(fit, network), output_path=path)
        check_package(path)
    finally:
        logger.enable("bioimageio")
    return path


def check_package(path: Path) -> None:
    """Raise RuntimeError, saying what failed, unless bioimage.io's own validator is content.

    The package names no address, so the validator has nothing to fetch.
    """
    from bioimageio.core import test_model

    summary = test_model(path)
    if summary.status != "passed":
        faults = "; ".join(f"{'.'.join(map(str, e.loc))}: {e.msg}" for e in summary.errors)
        raise RuntimeError(f"bioimageio.core does not accept the package: {faults}")


def _description(fit: _Exported, network: Path) -> Any:
    import onnx
    from bioimageio.spec.model import v0_5 as spec

    made, folder = fit.made, network.parent
    (opset,) = onnx.load(network, load_external_data=False).opset_import
    weights = spec.OnnxWeightsDescr(source=network, opset_version=opset.version)
    return spec.ModelDescr(
        name=_name(made),
        description=f"Finds cell nuclei. {_learned(fit)}",
        authors=[spec.Author(name=name) for name in _authors()],
        license=LICENCE,
        covers=[spec.FileDescr(source=folder / "cover.png")],
        documentation=spec.FileDescr(source=folder / "README.md"),
        tags=["nuclei", "instance-segmentation", "2d", "nuctut"],
        inputs=[_input(fit, folder / "test-input.npy")],
        outputs=[_output(fit, folder / "test-output.npy")],
        weights=spec.WeightsDescr(onnx=weights),
    )


def _name(made: fits.Description) -> str:
    return f"nuctut {made.experiment} {made.variant} seed {made.seed}"


def _input(fit: _Exported, test: Path) -> Any:
    from bioimageio.spec.model import v0_5 as spec

    size = spec.ParameterizedSize(min=SMALLEST, step=fit.trained.model.stride)
    return spec.InputTensorDescr(
        id="image",
        description="Camera counts, as they are in the image file.",
        axes=[
            spec.BatchAxis(),
            spec.ChannelAxis(channel_names=CHANNELS[fit.trained.channels]),
            *(spec.SpaceInputAxis(id=axis, size=size, **_pixel(fit)) for axis in "yx"),
        ],
        data=spec.IntervalOrRatioDataDescr(type="float32"),
        test_tensor=spec.FileDescr(source=test),
    )


def _output(fit: _Exported, test: Path) -> Any:
    from bioimageio.spec.model import v0_5 as spec

    same = [(axis, spec.SizeReference(tensor_id="image", axis_id=axis)) for axis in "yx"]
    return spec.OutputTensorDescr(
        id="probabilities",
        description="Probability of each class.",
        axes=[
            spec.BatchAxis(),
            spec.ChannelAxis(channel_names=_classes(fit)),
            *(spec.SpaceOutputAxis(id=axis, size=size, **_pixel(fit)) for axis, size in same),
        ],
        data=spec.IntervalOrRatioDataDescr(type="float32", range=(0, 1)),
        test_tensor=spec.FileDescr(source=test),
    )


def _pixel(fit: _Exported) -> dict[str, Any]:
    """Side of a pixel as an axis states it, where it is known."""
    side = datasets.pixel_size(fit.made.data["name"])
    return {} if side is None else {"scale": side, "unit": "micrometer"}


def _knows(fit: _Exported) -> str:
    """What size of nuclei it knows, as a sentence with a space before it, where that is known."""
    if width := fit.trained.diameter:
        return f" It knows nuclei {width:g} pixels wide on average: rescale your images to that."
    side = datasets.pixel_size(fit.made.data["name"])
    return f" It knows pixels of {side} µm." if side else ""


def _classes(fit: _Exported) -> list[str]:
    return CLASSES[fit.probabilities(fit.image[:SMALLEST]).shape[0]]


def _cover(fit: _Exported) -> np.ndarray:
    """(H, 2 H, 3) uint8: the test image, and beside it the probability of a nucleus."""
    counts = _as_batch(fit.image)[0]
    picture = np.broadcast_to(counts / counts.max(), (3, *counts.shape[1:]))
    chance = fit.probabilities(fit.image)[_classes(fit).index("nucleus")]
    both = np.concatenate([picture, np.broadcast_to(chance, picture.shape)], axis=2)
    return (255 * np.moveaxis(both, 0, -1)).astype(np.uint8)


def _authors() -> list[str]:
    """The project's authors, as the installed package names them."""
    return metadata("nuctut")["Author"].split(", ")


def _learned(fit: _Exported) -> str:
    """What it learned from, in a sentence or two."""
    name, source, images = (fit.made.data[key] for key in ("name", "source", "images"))
    if source == "simulated":
        return (
            f"It learned from simulated images alone ({images}, in the manner of {name}): it shows "
            "how such a network is used, and is not for real cells."
        )
    return f"It learned from {images} {source} images of {name}."


README = """# {name}

A network that finds the nuclei of cells in microscopy images, trained and exported with `nuctut`.
It follows {rebuilt}, and is no work of theirs. {learned}

## What it takes and gives

- **In**: (batch, {channels}, height, width) float32, {meaning}: camera counts as they are in the
  image file.{pixel}
- **Out**: (batch, {count}, height, width) float32 probabilities from 0 to 1: {classes}.
- Normalisation is part of the network: {scale}.
- Height and width are multiples of {stride}. Pad other images, at best by reflection.

The test image and the cover are simulated; no pixel of them comes from a data set.

## From probabilities to labels

{labels}

## Training

{learned}

- Variant `{variant}` of the experiment `{experiment}`, seed {seed}
- Epochs: {epochs}; updates: {updates}; best validation loss: {loss:.4g}
- {seconds:.0f} s on {device}, {precision}
{data}
All its settings:

```json
{settings}
```

## Validation

It reproduces the probabilities that `nuctut` computes of the test image to {tolerance}. How well it
finds nuclei in your images is to be measured on some of yours with nuclei marked by hand.

## Licence and citation

The weights: {licence}, {project}. Cite the paper above, the data, and `nuctut`.
"""

# By number of classes; the steps are those of `postprocess`.
LABELS = {
    1: """A pixel whose probability exceeds {threshold} belongs to a nucleus. What hangs together
along the sides of pixels is one nucleus. Nuclei of fewer than {min_area} pixels are dropped.""",
    3: """Each pixel takes its most probable class. Dilate the separations by a 3×3 square and join
them to the background; thin that to its skeleton, dilate it likewise, and cut it out of nuclei and
separations. What hangs together, diagonals included, is one nucleus. Nuclei of fewer than
{min_area} pixels are dropped. So are those of fewer than {small_area}, unless half of their pixels
are with a probability of {certainty} no background; such small ones grow by a pixel into it.
All grow by up to {growth} pixels into nuclei and separations,
each pixel going to the nearest.""",
}
SCALES = {
    "linear": """each image and channel by itself gets mean 0 and standard deviation
  1. So give whole images where memory allows: a tile is normalised by what is in the tile""",
    "log": """the logarithm of 1 + counts above the darkest pixel, which in each image
  by itself gets mean 0 and standard deviation 1. So give whole images where memory allows: a tile
  is normalised by what is in the tile""",
    "range": "counts are divided by {largest}",
}


def _readme(fit: _Exported) -> str:
    """What whoever is handed the package should know of it, as Markdown."""
    made, trained = fit.made, fit.trained
    specs = datasets.specs(made.data["name"])
    classes = _classes(fit)
    simulated = made.data["source"] == "simulated"
    words = made.settings | {"growth": trained.rule.growth, "largest": fit.largest}
    return README.format(
        **{name: getattr(made, name) for name in ("variant", "experiment", "seed")},
        **{name: getattr(trained.fit, name) for name in ("updates", "seconds", "device")},
        name=_name(made),
        rebuilt=scoreboard.rebuilt(made.experiment),
        learned=_learned(fit),
        channels=trained.channels,
        meaning=", ".join(CHANNELS[trained.channels]),
        scale=SCALES[trained.settings.scale].format(**words),
        stride=trained.model.stride,
        pixel=_knows(fit),
        count=len(classes),
        classes=", ".join(classes),
        labels=LABELS[len(classes)].format(**words),
        epochs=len(trained.fit.history),
        precision=trained.fit.precision,
        loss=trained.fit.history["val_loss"].min(),
        data=""
        if simulated
        else "".join(f"- The data: {s.citation} ({s.licence})\n" for s in specs),
        settings=json.dumps(made.settings, indent=1),
        tolerance=TOLERANCE,
        licence=LICENCE,
        project=", ".join(_authors()),
    )
