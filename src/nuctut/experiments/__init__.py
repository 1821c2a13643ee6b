"""What the chapters' experiments share, and one small module per chapter with what is only its own.

`settings` by preset; `fitting`, from settings and data to a network; `measuring`, from a method to
a record; `shipping`, the networks that come with the book.
"""

from nuctut.experiments.fitting import (
    ACCEPT,
    NAMES,
    ClassMap,
    Experiment,
    Trained,
    accepts_old_fits,
    code_digest,
    current_code,
    experiment_of,
    fit_key,
    load,
    random_crops,
    ready,
    train,
)
from nuctut.experiments.measuring import Measured, Segmented, measure, measure_network, record
from nuctut.experiments.settings import Settings, choose, fit_settings, presets, select
from nuctut.experiments.shipping import BY_NAME, folder_of, folders, named, record_of, ship, shipped

__all__ = [
    "ACCEPT",
    "BY_NAME",
    "NAMES",
    "ClassMap",
    "Experiment",
    "Measured",
    "Segmented",
    "Settings",
    "Trained",
    "accepts_old_fits",
    "choose",
    "code_digest",
    "current_code",
    "experiment_of",
    "fit_key",
    "fit_settings",
    "folder_of",
    "folders",
    "load",
    "measure",
    "measure_network",
    "named",
    "presets",
    "random_crops",
    "ready",
    "record",
    "record_of",
    "select",
    "ship",
    "shipped",
    "train",
]
