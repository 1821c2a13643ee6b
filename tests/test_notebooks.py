"""Chapters are found, their parameters held to, and runs end whole or not at all."""

import json
import subprocess
import sys
import time
import warnings

import nbformat
import numpy as np
import papermill
import psutil
import pytest
from chapter_maker import write_chapter, write_project
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import NUCTUT, is_alive, wait_for

from nuctut import paths, training
from nuctut.experiments import four_architectures, many_tissues, partial_labels, through_blur
from nuctut.files import MARKER
from nuctut.running import notebooks

SAY = "import os\nprint(preset, seed, rate, quick, os.path.basename(os.getcwd()))"


@pytest.fixture
def project(tmp_path, monkeypatch):
    root = tmp_path / "project"
    write_project(root, ["01_tiny", "02_small", "02_smaller"], ["words"])
    for name in ("01_tiny", "02_small", "02_smaller"):
        write_chapter(root / "book" / f"{name}.ipynb", SAY)
    monkeypatch.chdir(root)
    monkeypatch.delenv("NUCTUT_RUNS", raising=False)
    return root


def texts(path):
    cells = nbformat.read(path, as_version=4).cells
    return [output.text for cell in cells for output in cell.get("outputs", []) if "text" in output]


# --- where things are ----------------------------------------------------------------------------


def test_the_project_is_found_from_below_and_from_outside(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project / "book")
    assert paths.project_root() == project
    assert paths.results_root() == project / "results"
    assert paths.runs_root() == project / "runs"
    monkeypatch.chdir(tmp_path)  # neither here nor above: the checkout this package comes from
    assert (paths.project_root() / "src" / "nuctut" / "paths.py").is_file()


def test_outside_of_any_checkout_the_error_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "lib" / "nuctut" / "paths.py"))
    with pytest.raises(FileNotFoundError, match=r"pyproject\.toml and _config\.yml"):
        paths.project_root()


def test_runs_can_go_elsewhere(project, tmp_path, monkeypatch):
    monkeypatch.setenv("NUCTUT_RUNS", str(tmp_path / "elsewhere"))
    assert paths.runs_root() == tmp_path / "elsewhere"


# --- chapters and parameters ---------------------------------------------------------------------


def test_chapters_are_the_notebooks_of_the_table_of_contents_in_its_order(project):
    assert list(notebooks.chapters()) == ["01_tiny", "02_small", "02_smaller"]


def test_a_page_that_is_not_there_is_named(project):
    (project / "book" / "words.md").unlink()
    with pytest.raises(FileNotFoundError, match="book/words"):
        notebooks.chapters()


@pytest.mark.parametrize("name", ["01", "01_tiny", "0"])
def test_a_chapter_is_found_by_its_beginning(project, name):
    if name == "0":
        (project / "_toc.yml").write_text(
            "root: book/index\nparts:\n- chapters:\n  - file: book/01_tiny\n"
        )
    assert notebooks.find_chapter(name) == project / "book" / "01_tiny.ipynb"


def test_a_whole_name_wins_over_a_beginning(project):
    assert notebooks.find_chapter("02_small").stem == "02_small"


@pytest.mark.parametrize("name", ["03", "tiny", "02", "", "words"])
def test_an_unknown_or_ambiguous_chapter_is_refused_with_those_there_are(project, name):
    with pytest.raises(ValueError, match="01_tiny, 02_small, 02_smaller"):
        notebooks.find_chapter(name)


def test_parameters_are_read_with_type_default_and_help(project):
    found = notebooks.read_parameters(project / "book" / "01_tiny.ipynb")
    assert [str(parameter) for parameter in found.values()] == [
        "preset: str = 'smoke'",
        "seed: int = 0",
        "rate: float = 0.001",
        "quick: bool = False",
    ]
    assert found["seed"].help == "of the random generator"
    assert found["rate"].help == 'step, "#" and all'


def test_a_chapter_may_have_no_parameters(tmp_path):
    assert notebooks.read_parameters(write_chapter(tmp_path / "a.ipynb", parameters=None)) == {}


@pytest.mark.parametrize(
    "line",
    ["seed = 0", "seed: int", "seed: int = 'one'", "seed: list = []", "seed: int = 2 * n", "run()"],
)
def test_a_malformed_parameter_line_is_named(tmp_path, line):
    notebook = write_chapter(tmp_path / "odd.ipynb", parameters=f"# first\n{line}  # help")
    with pytest.raises(ValueError) as caught:
        notebooks.read_parameters(notebook)
    assert "odd.ipynb" in str(caught.value) and line.split()[0] in str(caught.value)


def test_texts_and_values_become_the_parameters_type(project):
    notebook = project / "book" / "01_tiny.ipynb"
    from_text = {"preset": "lite", "seed": "7", "rate": "0.5", "quick": "true"}
    values = {"preset": "lite", "seed": 7, "rate": 0.5, "quick": True}
    assert notebooks.check_values(notebook, from_text) == values
    assert notebooks.check_values(notebook, values) == values
    whole = notebooks.check_values(notebook, {"rate": 2})["rate"]
    assert whole == 2.0 and isinstance(whole, float)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"sed": 1}, "no parameter 'sed'.*preset: str = 'smoke', seed: int = 0"),
        ({"seed": "1.5"}, "parameter seed: expected int, not '1.5'"),
        ({"seed": True}, "parameter seed: expected int, not True"),
        ({"seed": 1.0}, "parameter seed: expected int"),
        ({"rate": "fast"}, "parameter rate: expected float"),
        ({"quick": "maybe"}, "parameter quick: expected bool"),
        ({"quick": 1}, "parameter quick: expected bool"),
        ({"preset": 3}, "parameter preset: expected str"),
        ({"preset": "huge"}, "no preset 'huge', but smoke, read, lite, paper"),
        ({"rate": "nan"}, "parameter rate: expected a finite number, not nan"),
        ({"rate": float("inf")}, "parameter rate: expected a finite number, not inf"),
        ({"rate": "-1e999"}, "parameter rate: expected a finite number, not -inf"),
        ({"rate": 10**400}, "parameter rate: expected float"),
        ({"seed": "9" * 5000}, "parameter seed: expected int"),
        ({"seed": -1}, "parameter seed: expected 0 to 4,294,967,295, not -1"),
        ({"seed": str(2**32)}, "parameter seed: expected 0 to 4,294,967,295, not 4294967296"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_exists(project, values, told):
    with pytest.raises(ValueError, match=told):
        notebooks.check_values(project / "book" / "01_tiny.ipynb", values)


CHOICES = """\
data: str = "preset"  # where from
device: str = "auto"  # on what
images: int = 0  # how many
epochs: int = 0  # how long
learning_rate: float = 0.0  # how fast
teachers: str = "all"  # which
networks: str = "all"  # which
configuration: str = "shape/intensity"  # how
shift: int = 2  # where to"""


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"learning_rate": "-0.001"}, "learning_rate: expected 0 to .*, not -0.001"),
        ({"epochs": -3}, "epochs: expected 0 to .*, not -3"),
        ({"images": "-1"}, "images: expected 0 to .*, not -1"),
        ({"device": "cuda"}, "device: expected one of auto, cpu, gpu, not 'cuda'"),
        ({"data": "fake"}, "data: expected one of .*excerpt, simulated.*preset, not 'fake'"),
        ({"teachers": "consensus,nobody"}, "teachers: expected some of .*consensus.*not 'nobody'"),
        ({"networks": "u-net,"}, "networks: expected some of simple-cnn, .*not ''"),
        ({"configuration": ""}, "configuration: expected one of shape/intensity, .*not ''"),
    ],
)
def test_what_is_out_of_range_is_refused_before_anything_starts(tmp_path, values, told):
    notebook = write_chapter(tmp_path / "a.ipynb", parameters=CHOICES)
    with pytest.raises(ValueError, match=told):
        notebooks.check_values(notebook, values)


def test_what_is_in_range_is_taken(tmp_path):
    notebook = write_chapter(tmp_path / "a.ipynb", parameters=CHOICES)
    values = {"data": "preset", "device": "cpu", "teachers": "consensus, ground-truth"}
    values |= {"networks": "all", "shift": -3, "epochs": 0, "learning_rate": 0.0}
    assert notebooks.check_values(notebook, values) == values


def test_only_where_it_is_the_default_preset_names_data(tmp_path):
    notebook = write_chapter(tmp_path / "a.ipynb", parameters='data: str = "auto"  # where from')
    with pytest.raises(ValueError, match=r"expected one of auto, .*not 'preset'"):
        notebooks.check_values(notebook, {"data": "preset"})


def test_what_the_books_chapters_take_is_known():
    """The tables of names say what the chapters and the rooms they call know."""
    networks = {**four_architectures.NETWORKS, **many_tissues.NETWORKS}
    networks |= through_blur.NETWORKS
    assert notebooks.SOME_OF["networks"] == tuple(networks)
    conditions = many_tissues.CONDITIONS + partial_labels.CONDITIONS
    assert notebooks.SOME_OF["conditions"] == conditions
    assert notebooks.SOME_OF["shares"] == partial_labels.SHARES
    assert set(partial_labels.NAMED) < set(notebooks.ONE_OF["on"])
    assert notebooks.ONE_OF["device"] == tuple(training.DEVICES)
    known = notebooks.ONE_OF | notebooks.SOME_OF
    for path in notebooks.chapters().values():
        code = "\n".join(cell.source for cell in notebooks.read_notebook(path).cells)
        for name, parameter in notebooks.read_parameters(path).items():
            assert notebooks.check_values(path, {name: parameter.default})
            if parameter.type is str and name != "preset":
                assert name in known, f"{path.name}: say in notebooks.ONE_OF what {name} may be"
        if "TEACHERS = {" in code:
            for name in notebooks.SOME_OF["teachers"]:
                assert (
                    f'"{name.replace("-", " ")}"' in code or f'"{name.replace("-", "/")}"' in code
                )


def test_a_gpu_that_is_not_there_is_told_before_anything_starts(project, monkeypatch):
    parameters = 'device: str = "auto"  # on what'
    write_chapter(project / "book" / "01_tiny.ipynb", parameters=parameters)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="no GPU that torch can use; say device=cpu"):
        notebooks.run_chapter("01", {"device": "gpu"}, verbose=False)
    assert not (project / "runs").exists()


CELL = '{"cell_type": "code", "metadata": %s, "source": "", "outputs": [], "execution_count": null}'
NOTEBOOK = '{"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [%s]}'


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "{}", '{"nbformat": 99}', '{"nbformat": 3, "worksheets": 4}',
     '{"cells": 3}', "[" * 100_000, NOTEBOOK % CELL % '{"tags": 3}', NOTEBOOK % "{}"],
)  # fmt: skip
def test_a_chapter_that_is_no_notebook_is_one_sentence(project, text):
    path = project / "book" / "01_tiny.ipynb"
    path.write_text(text)
    with warnings.catch_warnings(), pytest.raises(ValueError) as caught:
        warnings.simplefilter("ignore")
        notebooks.run_chapter("01", verbose=False)
    assert str(caught.value).startswith(f"{path}: not a notebook (")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("%matplotlib inline", "no Python"),
        ("seed: int = 0\n  rate: float = 1.0", "no Python"),
        ("seed: int = '\0'", "no Python"),
        ("seed: int = " + "-" * 10_000 + "1", "parameters cell"),
        ("seed: int = 0\nfor n in range(3):\n    print(n)", r"'for n in range\(3\):': expected"),
        ("import os", "'import os': expected `name: type"),
        ("seed: int = 0\nseed: int = 1", "'seed: int = 1': it stands there twice"),
        ("seed: int = {[]: 1}", "parameters cell"),
    ],
)
def test_a_parameters_cell_that_holds_code_is_one_sentence(tmp_path, cell, told):
    notebook = write_chapter(tmp_path / "odd.ipynb", parameters=cell)
    with pytest.raises(ValueError, match=told) as caught:
        notebooks.read_parameters(notebook)
    assert str(caught.value).startswith("odd.ipynb, parameters cell, ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "a: [", "chapters: 3", "chapters: [3]", "parts: [{}]"])
def test_a_malformed_table_of_contents_is_named(project, text):
    (project / "_toc.yml").write_text(text)
    with pytest.raises(ValueError, match=r"_toc\.yml: not a table of contents"):
        notebooks.chapters()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    preset=st.text(),
    seed=st.integers(),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    quick=st.booleans(),
)
def test_written_values_are_read_back_the_same(tmp_path, preset, seed, rate, quick):
    values = {"preset": preset, "seed": seed, "rate": rate, "quick": quick}
    notebook = write_chapter(tmp_path / "a.ipynb")
    before = notebooks.read_parameters(notebook)
    source = nbformat.read(notebook, as_version=4).cells[1].source
    write_chapter(notebook, parameters=notebooks.write_values(source, values))
    after = notebooks.read_parameters(notebook)
    assert {name: parameter.default for name, parameter in after.items()} == values
    assert [p.help for p in after.values()] == [p.help for p in before.values()]


# --- running -------------------------------------------------------------------------------------


def test_a_run_gets_its_values_in_the_books_folder_and_lands_in_runs(project):
    output = notebooks.run_chapter("01", {"preset": "lite", "seed": "3"}, verbose=False)
    assert output.parent == project / "runs" / "01_tiny"
    assert texts(output) == ["lite 3 0.001 False book\n"]
    assert {path.name for path in output.parent.iterdir()} == {output.name, MARKER}


def test_a_wrong_value_stops_a_run_before_it_starts(project):
    with pytest.raises(ValueError, match="parameter seed"):
        notebooks.run_chapter("01", {"seed": "x"}, verbose=False)
    assert not (project / "runs").exists()


LATE = """\
import time
kernel, told = get_ipython().kernel, []
publish = kernel._publish_status
def late(status, *args, **kwargs):
    if status == "idle" and not told:
        told.append(status)
        time.sleep(6)
    return publish(status, *args, **kwargs)
kernel._publish_status = late"""


def test_a_kernel_that_is_late_to_say_that_it_is_done_is_waited_for(project):
    """As on a busy machine: nbclient gives it four seconds, and then gives up the run."""
    write_chapter(project / "book" / "01_tiny.ipynb", LATE, "print('told', told)")
    path = notebooks.run_chapter("01", verbose=False)
    assert "told ['idle']" in path.read_text()


def test_a_failing_cell_is_told_and_leaves_the_earlier_run_as_it_was(project):
    output = notebooks.run_chapter("01", verbose=False)
    earlier = output.read_bytes()
    write_chapter(project / "book" / "01_tiny.ipynb", SAY, "# go on\n1 / seed")
    with pytest.raises(RuntimeError) as caught:
        notebooks.run_chapter("01", verbose=False)
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    message = str(caught.value)
    assert "01_tiny failed in cell [3]: ZeroDivisionError: division by zero" in message
    assert "> # go on" in message and str(failed) in message
    assert output.read_bytes() == earlier
    assert {path.name for path in output.parent.iterdir()} == {output.name, failed.name, MARKER}
    notebooks.run_chapter("01", {"seed": 1}, verbose=False)
    assert failed.exists(), "another run's leftovers are not this run's to tidy"


def test_progress_and_prints_are_shown_when_asked_for(project, capfd):
    notebooks.run_chapter("01", verbose=True)
    shown = capfd.readouterr()
    assert "smoke 0 0.001 False book" in shown.out
    assert "Executing" in shown.err


def test_runs_are_named_by_their_parameters():
    key = notebooks.run_key({"seed": 1, "preset": "lite"})
    assert key.startswith("preset-lite--seed-1--")
    assert key == notebooks.run_key({"preset": "lite", "seed": 1})
    same_letters = [{"a": "x/y"}, {"a": "x y"}, {"a": "x_y"}]
    assert len({notebooks.run_key(values) for values in same_letters}) == 3
    assert notebooks.run_key({}) == "as-it-stands"
    assert len(notebooks.run_key({"a": "long" * 100})) < 100


# --- kernels -------------------------------------------------------------------------------------

PLOT = """\
import matplotlib.pyplot as plt
figure, axes = plt.subplots()
axes.plot([0, 1])
figure"""


@pytest.mark.parametrize("backend", ["agg", "pdf", "TkAgg"])
def test_figures_are_shown_whatever_the_environment_says(project, monkeypatch, backend):
    monkeypatch.setenv("MPLBACKEND", backend)
    write_chapter(project / "book" / "01_tiny.ipynb", PLOT)
    cells = nbformat.read(notebooks.run_chapter("01", verbose=False), as_version=4).cells
    assert any("image/png" in output.get("data", {}) for output in cells[-1].outputs)


def test_a_kernel_listens_on_the_loopback_interface_alone(project):
    """It tells all of its process's sockets, and how it was told to reach its owner."""
    look = """\
import json, psutil
ports = [one.laddr for one in psutil.Process().net_connections() if one.status == "LISTEN"]
print(json.dumps(ports))"""
    write_chapter(project / "book" / "01_tiny.ipynb", look)
    (text,) = texts(notebooks.run_chapter("01", verbose=False))
    listening = json.loads(text)
    assert len(listening) >= 5 and {host for host, _ in listening} == {"127.0.0.1"}


@pytest.mark.parametrize(("deaths", "runs"), [(1, True), (2, True), (3, False)])
def test_a_kernel_whose_port_was_taken_meanwhile_is_started_again(
    project, monkeypatch, deaths, runs
):
    """Its ports are looked for first, and taken later: so it may die before any cell has run."""
    really, left = papermill.execute_notebook, deaths

    def unlucky(*args, **how):
        nonlocal left
        left -= 1
        if left >= 0:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return really(*args, **how)

    monkeypatch.setattr(papermill, "execute_notebook", unlucky)
    if runs:
        assert texts(notebooks.run_chapter("01", verbose=False))
    else:
        with pytest.raises(RuntimeError, match=r"01_tiny failed: .*Kernel died"):
            notebooks.run_chapter("01", verbose=False)


def start(*words):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*NUCTUT, *words], **quiet)


# The first statement says that it is there; the second keeps Python's lock for hours, so that no
# other thread of the kernel can look whether anybody still wants it.
STUBBORN = """\
import os, pathlib
pathlib.Path("started").write_text(str(os.getpid()))
sum(range(10**13))"""


@pytest.mark.skipif(sys.platform != "linux", reason="ipykernel's own look-out is all there is")
def test_no_kernel_outlives_a_killed_run(project):
    write_chapter(project / "book" / "01_tiny.ipynb", STUBBORN)
    mark = project / "book" / "started"
    run = start("run", "01")
    kernel = psutil.Process(int(wait_for(lambda: mark.exists() and mark.read_text(), "the cell")))
    try:
        run.kill()
        run.wait()
        begun = time.monotonic()
        while is_alive(kernel) and time.monotonic() < begun + 10:
            time.sleep(0.05)
        assert not is_alive(kernel)
    finally:
        run.kill()
        if is_alive(kernel):
            kernel.kill()


# --- what a chapter says -------------------------------------------------------------------------

SPOKEN = """\
import numpy as np
from nuctut.running.notebooks import quote, say, shows
say(blobs=np.int64(7), score=0.123456, data="a set", **{"F1 at 0.5": np.float32(0.5)})"""
QUOTING = """\
quote('''
**{glue:text}`blobs`** of {glue:text}`data:s`: {glue:text}`F1
at 0.5:.2f`, {glue:text}`score`, `{x}`
''')"""
CHECKED = """\
shows(np.float64(2) > 1, "two is more than one", "2 against 1")
shows(1 > 2, "one is more than two", "1 against 2")
shows(2 > 1, "two is more", "2 against 1", records=True)
shows(1 > 2, "one is more", "1 against 2", records=True)"""


def test_what_is_said_is_shown_and_can_be_quoted(project):
    write_chapter(project / "book" / "01_tiny.ipynb", SPOKEN, QUOTING, CHECKED)
    executed = nbformat.read(notebooks.run_chapter("01", verbose=False), as_version=4)
    said, quoted, checked = (cell.outputs for cell in executed.cells[-3:])
    (line,) = [one for one in said if "text/plain" in one.data]
    assert line.data == {"text/plain": "blobs: 7 · score: 0.123 · data: a set · F1 at 0.5: 0.5"}
    assert line.metadata == {"nuctut": notebooks.SAID}
    glued = [one.metadata["scrapbook"]["name"] for one in said if "scrapbook" in one.metadata]
    assert glued == ["blobs", "score", "data", "F1 at 0.5"]
    assert quoted[0].data["text/markdown"] == "**7** of a set: 0.50, 0.123456, `{x}`"
    assert [one.data["text/markdown"] for one in checked] == [
        "In this run, two is more than one (2 against 1).",
        "This run does **not** show that one is more than two (1 against 2).",
        "In the records, two is more (2 against 1).",
        "The records do **not** show that one is more (1 against 2).",
    ]
    told = [("two is more than one", True), ("one is more than two", False)]
    told += [("two is more", True), ("one is more", False)]
    assert notebooks.shown(executed) == told


def test_what_was_not_said_cannot_be_quoted():
    with pytest.raises(LookupError, match="no value 'nobody' yet: run the cells above first"):
        notebooks.quote("{glue:text}`nobody:.2f`")


@pytest.mark.parametrize("condition", [1, "True", None, np.array([True]), np.float64(1)])
def test_what_a_run_shows_is_true_or_false(condition):
    with pytest.raises(TypeError, match=f"True or False .* not a {type(condition).__name__}"):
        notebooks.shows(condition, "claim", "numbers")
