import sys

import pytest

from components.code_version import code_version


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "code_under_test"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "inner" / "work.py").write_text("x = 1\n")
    (folder / "settings.yaml").write_text("a: 1\n")
    (folder / "page.html").write_text("<p>")
    (folder / "notes.md").write_text("a")
    monkeypatch.syspath_prepend(tmp_path)
    # Looking for a module imports its package, and the next test has another one of that name.
    for name in [name for name in sys.modules if name.startswith("code_under_test")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def test_form_and_stability(package):
    version = code_version("code_under_test")
    assert len(version) == 16
    assert int(version, 16) >= 0
    assert code_version("code_under_test") == version


@pytest.mark.parametrize("name", ["inner/work.py", "settings.yaml", "page.html", "__init__.py"])
def test_content_counts(package, name):
    before = code_version("code_under_test")
    (package / name).write_text("y: 2\n")
    assert code_version("code_under_test") != before


def test_new_and_renamed_files_count(package):
    versions = {code_version("code_under_test")}
    (package / "more.py").write_text("z = 1\n")
    versions.add(code_version("code_under_test"))
    (package / "more.py").rename(package / "other.py")
    versions.add(code_version("code_under_test"))
    assert len(versions) == 3


def test_other_files_and_other_code_do_not_count(package):
    whole, inner = code_version("code_under_test"), code_version("code_under_test.inner")
    (package / "notes.md").write_text("b")
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "work.pyc").write_bytes(b"x")
    assert code_version("code_under_test") == whole
    (package / "settings.yaml").write_text("a: 2\n")
    assert code_version("code_under_test.inner") == inner


def test_a_module_stands_for_its_file_alone(package):
    (package / "other.py").write_text("z = 1\n")
    before = code_version("code_under_test.inner.work")
    (package / "other.py").write_text("z = 2\n")
    assert code_version("code_under_test.inner.work") == before
    (package / "inner" / "work.py").write_text("x = 2\n")
    assert code_version("code_under_test.inner.work") != before


def test_order_of_names_does_not_matter_and_all_count(package):
    names = ("code_under_test.inner.work", "components.code_version")
    assert code_version(*names) == code_version(*reversed(names))
    assert code_version(*names) != code_version(names[0])


def test_unknown_name(package):
    with pytest.raises(ModuleNotFoundError):
        code_version("code_under_test.nothing")
