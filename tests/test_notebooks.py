"""Chapters are found, their parameters held to, and runs end whole or not at all."""

import nbformat
import pytest
from chapter_maker import write_chapter, write_project
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nuctut import paths
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
        ({"preset": "huge"}, "no preset 'huge', but smoke, lite, paper"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_exists(project, values, told):
    with pytest.raises(ValueError, match=told):
        notebooks.check_values(project / "book" / "01_tiny.ipynb", values)


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
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_a_wrong_value_stops_a_run_before_it_starts(project):
    with pytest.raises(ValueError, match="parameter seed"):
        notebooks.run_chapter("01", {"seed": "x"}, verbose=False)
    assert not (project / "runs").exists()


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
    assert {path.name for path in output.parent.iterdir()} == {output.name, failed.name}
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
