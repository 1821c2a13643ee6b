"""Published weights, from torch's cache or from a server that is not there."""

from __future__ import annotations

import hashlib
import io
import os
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import Weights, WeightsEnum
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.segmentation import FCN_ResNet101_Weights

from nuctut.models.pretrained import published_weights

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([1.0, -1.0])}


def stored(value: Any = STATE) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def published(name: str) -> WeightsEnum:
    """Weights that would lie at this name on a server."""
    weights = Weights(url=f"https://example.invalid/{name}", transforms=None, meta={})
    return WeightsEnum("Published", {"DEFAULT": weights}).DEFAULT


def assert_state(found: dict[str, Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], weight) for name, weight in STATE.items())


@pytest.fixture
def checkpoints(tmp_path, monkeypatch) -> Path:
    """Torch's own folder of downloads, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def server(monkeypatch) -> list[Any]:
    """What the server answers with, bytes or an error, popped from a list that starts empty."""
    answers: list[Any] = []

    def urlopen(request: Any, *_: Any, **__: Any) -> io.BytesIO:
        assert request.full_url.startswith("https://example.invalid/")
        answer = answers.pop()
        if isinstance(answer, Exception):
            raise answer
        body = io.BytesIO(answer)
        body.info = Message
        return body

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    return answers


def test_weights_on_disk_are_loaded_without_a_network(checkpoints, server):
    (checkpoints / "tiny-0badc0de.pth").write_bytes(stored())
    assert_state(published_weights(published("tiny-0badc0de.pth")))


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        urllib.error.HTTPError("https://example.invalid", 403, "Forbidden", {}, None),
        ConnectionResetError("reset by peer"),
        TimeoutError("timed out"),
    ],
)
def test_without_network_the_error_says_which_why_and_what_to_do(checkpoints, server, error):
    server.append(error)
    with pytest.raises(OSError, match="cannot be had") as raised:
        published_weights(published("tiny-0badc0de.pth"))
    text = str(raised.value)
    assert "https://example.invalid/tiny-0badc0de.pth" in text and str(error) in text
    assert f"put it at {checkpoints / 'tiny-0badc0de.pth'}," in text
    assert "pretrained=False" in text
    assert os.listdir(checkpoints) == []
    # What it says to do, helps.
    (checkpoints / "tiny-0badc0de.pth").write_bytes(stored())
    assert_state(published_weights(published("tiny-0badc0de.pth")))


def test_a_folder_that_cannot_be_written_is_such_an_error_too(tmp_path, monkeypatch, server):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(OSError, match=r"tiny-0badc0de\.pth cannot be had .*pretrained=False"):
        published_weights(published("tiny-0badc0de.pth"))


def test_a_file_that_is_damaged_is_named(checkpoints, server):
    (checkpoints / "tiny-0badc0de.pth").write_bytes(stored()[:-200])
    with pytest.raises(OSError, match=str(checkpoints / "tiny-0badc0de.pth")):
        published_weights(published("tiny-0badc0de.pth"))


def test_a_download_with_the_right_checksum_is_kept(checkpoints, server):
    body = stored()
    name = f"tiny-{hashlib.sha256(body).hexdigest()[:8]}.pth"
    server.append(body)
    assert_state(published_weights(published(name)))
    assert (checkpoints / name).read_bytes() == body
    assert_state(published_weights(published(name)))  # the server has no second answer


def test_a_download_with_another_checksum_is_not_used(checkpoints, server):
    server.append(stored())
    with pytest.raises(OSError, match="hash"):
        published_weights(published("tiny-0badc0de.pth"))
    assert os.listdir(checkpoints) == []


def test_code_in_a_file_is_not_run(checkpoints, tmp_path):
    class Malice:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "harm"),))

    (checkpoints / "tiny-0badc0de.pth").write_bytes(stored({"layer.weight": Malice()}))
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        published_weights(published("tiny-0badc0de.pth"))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "weights",
    [
        MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
        FCN_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1,
    ],
)
def test_the_names_of_torchvisions_weights_carry_a_checksum(weights):
    assert torch.hub.HASH_REGEX.search(Path(weights.url).name)
