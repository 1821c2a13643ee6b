"""Samples refuse what they are not, and sets read lazily."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nuctut.samples import Sample, SampleSet

IMAGE = np.arange(12, dtype=np.uint16).reshape(3, 4)
LABELS = np.array([[0, 1, 1, 0], [0, 0, 2, 2], [3, 0, 0, 0]], np.int32)


def make_set(count: int = 5, **changes) -> tuple[SampleSet, list[str]]:
    """A set of `count` samples, and the list of keys read so far."""
    read: list[str] = []

    def one(key: str) -> Sample:
        read.append(key)
        return Sample(key, IMAGE, LABELS)

    about = {"name": "bbbc039", "split": "test", "source": "real", "fingerprint": "ab"} | changes
    return SampleSet([f"k{i}" for i in range(count)], one, **about), read


def test_a_sample_counts_its_nuclei_and_cannot_be_changed():
    tags = {"plate": "7"}
    sample = Sample("a", IMAGE, LABELS, tags)
    assert sample.count == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.key = "b"
    with pytest.raises(TypeError):
        sample.tags["plate"] = "8"
    tags["plate"] = "9"
    assert sample.tags == {"plate": "7"}


def test_an_image_without_nuclei_is_a_sample():
    assert Sample("empty", IMAGE, np.zeros((3, 4), np.int32)).count == 0


def test_a_colour_image_is_a_sample():
    assert Sample("h&e", np.zeros((3, 4, 3), np.uint8), LABELS).count == 3


@pytest.mark.parametrize(
    ("image", "labels", "reason"),
    [
        (np.zeros((3, 4, 4)), LABELS, r"\(H, W, 3\)"),
        (np.zeros(12), LABELS, r"\(H, W\)"),
        (IMAGE.T, LABELS, "do not fit"),
        (IMAGE, LABELS.astype(np.int64), "int32, not int64"),
        (np.where(IMAGE == 5, np.nan, 1.0), LABELS, "NaN"),
        (np.where(IMAGE == 5, np.inf, 1.0), LABELS, "infinite"),
        (IMAGE, LABELS - 1, "negative"),
        (IMAGE, np.where(LABELS == 2, 0, LABELS).astype(np.int32), "without gaps"),
    ],
)
def test_a_broken_sample_is_refused_by_its_key(image, labels, reason):
    with pytest.raises(ValueError, match=f"^well_A01: .*{reason}"):
        Sample("well_A01", image, labels)


def test_a_set_reads_a_sample_when_asked_and_only_once():
    samples, read = make_set()
    assert len(samples) == 5 and read == []
    first = samples[3]
    assert first.key == "k3" and samples[3] is first and read == ["k3"]
    assert samples[-1].key == "k4"
    assert [sample.key for sample in samples] == list(samples.keys)
    assert sorted(read) == list(samples.keys)
    with pytest.raises(IndexError):
        samples[5]


def test_a_part_of_a_set_has_its_own_fingerprint_and_shares_what_was_read():
    samples, read = make_set()
    part = samples.take(2)
    assert part.keys == ("k0", "k1")
    assert (part.name, part.split, part.source) == ("bbbc039", "test", "real")
    assert len({samples.fingerprint, part.fingerprint, samples.take(3).fingerprint}) == 3
    assert part.fingerprint == samples.take(2).fingerprint
    assert part[1] is samples[1] and read == ["k1"]
    assert samples.take(5) is samples and samples.take(99) is samples
    with pytest.raises(ValueError, match="at least 1"):
        samples.take(0)


def test_an_excerpt_says_of_how_many_images_it_is():
    samples, _ = make_set(source="excerpt", whole=50)
    assert samples.describe() == "bbbc039 test (real, excerpt: 5 of 50 images)"
    assert samples.take(2).describe() == "bbbc039 test (real, excerpt: 2 of 50 images)"


def test_a_set_says_what_it_is():
    assert make_set()[0].describe() == "bbbc039 test (real, 5 images)"
    assert make_set(source="simulated")[0].describe() == "bbbc039 test (simulated, 5 images)"
    with pytest.raises(ValueError, match="real, excerpt, stand-in, simulated, not 'fake'"):
        make_set(source="fake")


def test_joined_sets_give_the_samples_of_both_and_read_each_once():
    one, read = make_set(2)
    about = {"name": "more", "split": "validation", "source": "simulated", "fingerprint": "cd"}
    other = SampleSet(["x"], lambda key: Sample(key, IMAGE, LABELS), **about)
    both = one.joined(other)
    assert [sample.key for sample in both] == ["k0", "k1", "x"] and read == ["k0", "k1"]
    assert both[1] is one[1] and both[2] is other[0]
    assert both.describe() == "bbbc039 and more test (real, 3 images)"
    digests = {both.fingerprint, other.joined(one).fingerprint, one.fingerprint, other.fingerprint}
    assert len(digests) == 4


def test_joined_excerpts_say_of_how_many_images_they_are():
    one, _ = make_set(2, source="excerpt", whole=50)
    about = {"name": "bbbc039", "split": "validation", "source": "excerpt", "fingerprint": "cd"}
    other = SampleSet(["x"], lambda key: Sample(key, IMAGE, LABELS), **about, whole=20)
    assert one.joined(other).describe() == "bbbc039 test (real, excerpt: 3 of 70 images)"


def test_sets_with_the_same_key_are_not_joined():
    one, _ = make_set(2)
    with pytest.raises(ValueError, match="k0 is in bbbc039 and in other"):
        one.joined(make_set(name="other")[0])


def test_picked_samples_are_a_set_of_their_own():
    samples, read = make_set()
    part = samples.picked(["k3", "k1"])
    assert [sample.key for sample in part] == ["k3", "k1"] and read == ["k3", "k1"]
    assert part.describe() == "bbbc039 test (real, 2 images)" and part[0] is samples[3]
    assert len({samples.fingerprint, part.fingerprint, samples.picked(["k1"]).fingerprint}) == 3
    with pytest.raises(ValueError, match=r"no key was given of bbbc039 test \(real, 5 images\)"):
        samples.picked([])
    with pytest.raises(ValueError, match="k9 is not in bbbc039 test"):
        samples.picked(["k1", "k9"])


def test_changed_samples_are_made_when_asked_for():
    samples, read = make_set()
    brighter = samples.changed(
        "brighter", lambda one: dataclasses.replace(one, image=one.image + 1)
    )
    assert not read and brighter.keys == samples.keys
    assert (brighter[2].image == samples[2].image + 1).all() and read == ["k2"]
    assert brighter.describe() == samples.describe()
    others = samples.changed("darker", lambda one: one), samples, brighter
    assert len({one.fingerprint for one in others}) == 3


def test_what_is_made_to_stand_in_says_so() -> None:
    samples, _ = make_set()
    made = samples.changed("same", lambda one: one, samples.stood_in)
    assert made.describe() == "bbbc039 test (stand-in, 5 images)"
    part, _ = make_set(whole=50)
    assert part.describe() == "bbbc039 test (real, part: 5 of 50 images)"
    made = part.changed("same", lambda one: one, part.stood_in)
    assert made.describe() == "bbbc039 test (stand-in, part: 5 of 50 images)"
    simulated, _ = make_set(source="simulated")
    assert simulated.stood_in == "simulated"


def test_a_set_that_does_not_remember_reads_anew_each_time() -> None:
    forgetful, read = make_set(2, remember=False)
    assert forgetful[0] is not forgetful[0] and len(read) == 2
    assert not forgetful.take(1).remember
