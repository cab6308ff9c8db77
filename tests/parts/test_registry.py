"""Which parts there are, from where, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import command_line
import pytest

import imf_core
from imf_core.config import Config
from imf_core.errors import ConfigError
from imf_core.model.scoring import DistMult, Scorer, scorer_class
from imf_core.parts import registry
from imf_core.parts.registry import KINDS

FILE = '''
"""A scorer in a file."""
import imf_core
from imf_core.model.scoring import DistMult

@imf_core.scorer("filed")
class Filed(DistMult):
    """DistMult from a file."""
'''


def test_the_product_s_own_are_found_by_their_names() -> None:
    assert scorer_class(Config().model).__name__ == "Contextual"
    for kind in KINDS:
        for name in KINDS[kind].built_in:
            part = registry.named(kind, name)
            assert (part.source, part.own) == ("imf-search", False), name
            assert part.description, f"{kind} {name} has no docstring"


def test_nothing_of_a_package_is_imported_before_it_is_asked_for(site: Path) -> None:
    code = (
        "import sys, imf_core; from imf_core.parts import registry; assert 'rotate' in registry.names('scorer');"
        "config = imf_core.Config(); print('rotate_part' in sys.modules, 'torch' in sys.modules);"
        "imf_core.Config().updated({'model.scoring': 'rotate'}); print('rotate_part' in sys.modules)"
    )
    path = {"PYTHONPATH": f"{Path(imf_core.__file__).parents[1]}:{site}", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]


@pytest.mark.usefixtures("installed")
def test_a_package_s_part_has_its_name_and_version() -> None:
    part = registry.named("scorer", "rotate")
    assert (part.package, part.version, part.source) == ("rotate-part", "1.0", "rotate-part 1.0")
    assert part.settings is not None and part.settings().margin == 6.0
    assert registry.carried() == ()  # workers import it


@pytest.mark.usefixtures("installed")
def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model\.scoring = 'rotat'.*there is no scorer 'rotat'; did you mean 'rotate'\?"):
        Config().updated({"model.scoring": "rotat"})
    with pytest.raises(ConfigError, match=r"no fusion operator 'waited'.*did you mean 'gated'|weighted"):
        Config().updated({"model.fusion": "waited"})
    with pytest.raises(ConfigError, match="there is no regularizer 'n4'; did you mean 'n3'"):
        Config().updated({"train.regularizer": "n4"})
    with pytest.raises(ConfigError, match="there is no loss 'cce'; did you mean 'ce'"):
        Config().updated({"train.loss": "cce"})


@pytest.mark.usefixtures("installed")
def test_names_that_clash_are_refused_with_both_sources() -> None:
    class Other(DistMult):
        """Another one."""

    with pytest.raises(ConfigError, match=r"two scorers 'transe'.*imf-search"):
        imf_core.scorer("transe")(Other)
    with pytest.raises(ConfigError, match=r"two scorers 'rotate'.*test_registry\.py.*rotate-part 1\.0, which is installed"):
        imf_core.scorer("rotate")(Other)
    registry.named("scorer", "rotate")
    with pytest.raises(ConfigError, match=r"two scorers 'rotate'.*rotate-part 1\.0"):
        imf_core.scorer("rotate")(Other)


@pytest.mark.usefixtures("forgotten")
def test_a_cell_that_is_run_again_replaces_its_part() -> None:
    def cell() -> type[Scorer]:
        @imf_core.scorer("celled")
        class Celled(DistMult):
            """A part of a notebook."""

        return Celled

    assert cell() is not (second := cell())
    assert registry.named("scorer", "celled").target is second


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("name", ["", "two words", "a.b", "1st"])
def test_names_that_cannot_stand_in_settings_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a scorer"):
        imf_core.scorer(name)(DistMult)


@pytest.mark.usefixtures("forgotten")
def test_settings_of_another_type_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"derive it from imf_core\.Section"):
        imf_core.scorer("odd", settings=dict)(DistMult)  # type: ignore[arg-type]


@pytest.mark.usefixtures("forgotten")
def test_a_file_registers_once_and_a_copy_of_it_is_the_same(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "filed.py").write_text(FILE)
    (part,) = imf_core.load_part(str(tmp_path / "here" / "filed.py"))
    assert imf_core.load_part(str(tmp_path / "here" / "filed.py")) == (part,)
    assert (part.name, part.description, part.package) == ("filed", "DistMult from a file.", "")
    imf_core.load_part(str(tmp_path / "there" / "filed.py"))
    assert [part.name for part in registry.carried()] == ["filed"]


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize(
    ("text", "words"),
    [("x = 1\n", "registers no part"), ("import nowhere\n", "cannot be imported: ModuleNotFoundError"),
     ("def broken(:\n", "cannot be imported: SyntaxError"), (None, "is no Python file")],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "odd.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        imf_core.load_part(str(file))


@pytest.mark.usefixtures("forgotten")
def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "broken-2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 2\n")
    (info / "entry_points.txt").write_text("[imf_search.scorers]\nbroken = nowhere_at_all:Thing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(ConfigError, match="the scorer 'broken' of broken cannot be imported: ModuleNotFoundError"):
        Config().updated({"model.scoring": "broken"})
    assert Config().updated({"model.scoring": "complex"}).model.scoring == "complex"  # nobody else minds
    assert "cannot be imported" in command_line.run("parts", "scorer")


@pytest.mark.usefixtures("installed")
def test_imf_parts_lists_them_with_source_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    shown = command_line.run("parts")
    for kind in KINDS.values():
        assert kind.group in shown
    line = next(line for line in shown.splitlines() if line.split()[:1] == ["rotate"])
    assert "rotate-part 1.0" in line and "RotatE" in line and "margin=6.0" in line
    assert "contextual" in shown and "recommend" in shown
    assert "tucker" not in command_line.run("parts", "scorer")
    assert "choose one of: scorer, fusion" in str(command_line.fails("parts", "scorers"))


@pytest.mark.usefixtures("forgotten")
def test_commands_take_a_file(tmp_path: Path) -> None:
    (tmp_path / "filed.py").write_text(FILE)
    assert "filed" in command_line.run("parts", "scorer", "--part", str(tmp_path / "filed.py"))
    assert "is no Python file" in str(command_line.fails("parts", "--part", str(tmp_path / "none.py")))
