"""What lies in a fit's folder: damage is noticed, and where the weights come from is kept."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from test_training import SETTINGS, crops, network, run, weights_of
from torch import nn

from nuctut import fits, training
from nuctut.files import Malformed
from nuctut.fits import Description, FitResult
from nuctut.losses import LogDiceLoss


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> FitResult:
    return run(tmp_path_factory.mktemp("fit") / "finished", epochs=1)


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of a finished fit, to be spoiled."""
    for path in finished.best.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- weights ------------------------------------------------------------------------------------


def test_weights_come_back_to_the_bit_whatever_their_layout(tmp_path):
    model = network().to(memory_format=torch.channels_last)
    fits.save_weights(model, tmp_path / "weights")
    again = network(seed=9)
    fits.load_weights(again, tmp_path / "weights", fits.checksum(tmp_path / "weights"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_learned_numbers_are_rounded_and_statistics_are_not(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with torch.no_grad():
        model[0].bias[0] = 1e6  # more than 16 bits can hold
        model[1].running_var.fill_(1e-9)  # less than they can
    fits.save_weights(model, tmp_path / "weights", torch.float16)
    stored = safetensors.torch.load_file(tmp_path / "weights")
    assert stored["0.weight"].dtype == stored["1.weight"].dtype == torch.float16
    assert torch.equal(stored["0.weight"], model[0].weight.half())
    assert torch.equal(stored["0.bias"], model[0].bias)
    assert torch.equal(stored["1.running_var"], model[1].running_var)


def test_no_single_changed_bit_is_loaded(folder):
    original = (folder / fits.WEIGHTS).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(original), size=100):
        spoilt = bytearray(original)
        spoilt[place] ^= 1 << int(rng.integers(8))
        (folder / fits.WEIGHTS).write_bytes(spoilt)
        with pytest.raises(Malformed, match=r"best.safetensors is damaged or was changed"):
            fits.finished(network(), folder)
    (folder / fits.WEIGHTS).write_bytes(original)
    assert fits.finished(network(), folder) is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_even_with_their_own_checksum(folder, value):
    model = network()
    with torch.no_grad():
        model.head.weight[0, 0] = value
    fits.save_weights(model, folder / fits.WEIGHTS)
    rewrite(folder / fits.DONE, weights_sha256=fits.checksum(folder / fits.WEIGHTS))
    with pytest.raises(Malformed, match=r"head.weight holds weights that are NaN or infinite"):
        fits.finished(network(), folder)


def test_weights_of_another_network_are_refused(tmp_path):
    fits.save_weights(nn.Linear(2, 2), tmp_path / "weights")
    with pytest.raises(Malformed, match=r"weights holds no weights of this network"):
        fits.load_weights(network(), tmp_path / "weights")


# --- descriptions -------------------------------------------------------------------------------

HUGE = 10**400
DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (fits.DONE, "", "not a JSON file"),
        (fits.DONE, "null", "its content must be an object, not null"),
        (fits.DONE, DEEP, "recursion limit"),
        (fits.HISTORY, "", "not the history of a fit"),
        (fits.HISTORY, "step,loss\n1,2\n", "its columns must be step, train_loss"),
        (fits.HISTORY, ",".join(fits.COLUMNS) + "\n1,2\n", "not the history of a fit"),
        (fits.HISTORY, ",".join(fits.COLUMNS) + "\n1,x,1,1,1\n", "could not convert"),
        (fits.HISTORY, ",".join(fits.COLUMNS) + "\n" + "9" * 2**20 + ",1,1,1,1\n", "not the hist"),
        (fits.HISTORY, "\udcff", "not a text in UTF-8"),
    ],
)
def test_a_malformed_file_is_named(folder, name, text, told):
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(Malformed, match=told) as caught:
        fits.finished(network(), folder)
    assert str(caught.value).count(str(folder / name)) == 1


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("updates", None, "updates must be a whole number, not null"),
        ("updates", -1, "updates must be 0 or more, not -1"),
        ("updates", HUGE, "updates must be"),
        ("seconds", "3", "seconds must be a number"),
        ("seconds", HUGE, "seconds must be a finite number"),
        ("weights_sha256", "abc", "weights_sha256 must"),
        ("code", "../../etc", "code must"),
        ("device", "", "device must be a text that is not empty"),
        ("more", 1, "more is no field of it"),
    ],
)
def test_a_summarys_fields_are_held_against_its_schema(folder, field, value, told):
    rewrite(folder / fits.DONE, **{field: value})
    with pytest.raises(Malformed, match=told):
        fits.read_summary(folder)


def test_a_fit_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no finished fit: there is no done.json"):
        fits.read_summary(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no fit of a chapter: there is no network.json"):
        fits.read_description(tmp_path)
    assert len(fits.read_history(tmp_path)) == 0


def test_a_description_comes_back_as_it_was_written(tmp_path):
    data = {"name": "bbbc039", "source": "real", "fingerprint": "f", "images": 3}
    code = "0123456789abcdef"
    made = Description("labels_for_free", "v", 1, {"channels": [1, 2]}, False, data, code)
    training.write_json(tmp_path / fits.DESCRIPTION, made)
    assert fits.read_description(tmp_path) == made
    rewrite(tmp_path / fits.DESCRIPTION, data=data | {"images": "3"})
    with pytest.raises(Malformed, match=r"data.images must be a whole number"):
        fits.read_description(tmp_path)


# --- where the weights come from ----------------------------------------------------------------


def test_a_fit_keeps_where_its_weights_come_from(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "git_commit", lambda: "abc-dirty")
    code = "0123456789abcdef"
    how = (network(), LogDiceLoss(), crops(), crops(2), tmp_path, SETTINGS)
    result = training.fit(*how, code=code, progress=False)
    kept = result.provenance
    assert (kept["git_commit"], kept["code"]) == ("abc-dirty", code)
    assert kept["weights_sha256"] == fits.checksum(result.best)
    started, ended = (datetime.fromisoformat(kept[name]) for name in ("started", "ended"))
    assert started <= ended and started.utcoffset() is not None
    assert (ended - started).total_seconds() < 120
    assert set(result.budget).isdisjoint(kept) and result.budget["updates"] == result.updates


def test_a_fit_that_goes_on_under_another_commit_names_both(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "git_commit", lambda: "first")
    keep = training._Keeper.on_train_epoch_end

    def cut_short(self, trainer, module):
        keep(self, trainer, module)
        if len(self.history) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._Keeper, "on_train_epoch_end", cut_short)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(tmp_path)
    monkeypatch.setattr(training._Keeper, "on_train_epoch_end", keep)
    monkeypatch.setattr(training, "git_commit", lambda: "second")
    result = run(tmp_path)
    assert result.git_commit == "first, second" and len(result.history) == SETTINGS.epochs


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b[:1000], lambda b: flipped(b)])
def test_a_damaged_file_to_go_on_from_is_named(tmp_path, spoil):
    run(tmp_path, epochs=1)
    (tmp_path / fits.DONE).unlink()
    last = tmp_path / fits.LAST
    last.write_bytes(spoil(last.read_bytes()))
    with pytest.raises(Malformed, match=r"last.ckpt is damaged .*delete the file") as caught:
        run(tmp_path, epochs=1)
    assert str(last) in str(caught.value)
    last.unlink()
    assert run(tmp_path, epochs=1).updates == 3


def flipped(content: bytes) -> bytes:
    """One bit of the largest weight that the file holds, changed."""
    spoilt = bytearray(content)
    spoilt[len(spoilt) // 2] ^= 4
    return bytes(spoilt)


def test_the_weights_file_is_the_best_epochs(finished):
    assert finished.best.name == fits.WEIGHTS
    assert set(weights_of(finished)) == set(network().state_dict())
    assert dataclasses.asdict(finished)["weights_sha256"] == fits.checksum(finished.best)
