import os

import pytest

from pillsnap.core.errors import DataError
from pillsnap.data.links import link_folders


def sources(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
    return tuple(root / name for name in names)


def test_links_are_relative_and_nothing_is_done_twice(tmp_path):
    one, two, three = sources(tmp_path / "raw", "K-000059", "x/K-030864", "y/K-030864")
    folders = {"K-000059": (one,), "K-030864": (two, three)}
    base = tmp_path / "out" / "studio"
    report = link_folders(base, folders)
    assert (report.made, report.kept, report.removed) == (3, 0, 0)
    assert os.readlink(base / "K-000059") == "../../raw/K-000059"
    assert (base / "K-030864" / "2").resolve() == three.resolve()
    report = link_folders(base, folders)
    assert (report.made, report.kept, report.removed) == (0, 3, 0)


def test_retired_and_moved_drugs(tmp_path):
    one, two, three = sources(tmp_path / "raw", "a", "b", "c")
    base = tmp_path / "out" / "studio"
    link_folders(base, {"K-000001": (one,), "K-000002": (two, three)})
    report = link_folders(base, {"K-000002": (one,)})
    assert (report.made, report.removed) == (1, 3)
    assert [path.name for path in base.iterdir()] == ["K-000002"]
    assert (base / "K-000002").resolve() == one.resolve()
    assert link_folders(base, {"K-000002": (two, three)}).made == 2
    assert link_folders(base, {}).removed == 2
    assert list(base.iterdir()) == []


def test_a_link_whose_source_is_gone_is_replaced(tmp_path):
    one, two = sources(tmp_path / "raw", "a", "b")
    base = tmp_path / "out" / "studio"
    link_folders(base, {"K-000001": (one,)})
    one.rmdir()
    assert link_folders(base, {"K-000001": (two,)}).made == 1


def test_what_a_killed_run_left_goes(tmp_path):
    (one,) = sources(tmp_path / "raw", "a")
    base = tmp_path / "out" / "studio"
    link_folders(base, {"K-000001": (one,)})
    (base / ".link-x1").mkdir()
    (base / ".link-x1" / "link").symlink_to(one)
    assert link_folders(base, {"K-000001": (one,)}).kept == 1
    assert [path.name for path in base.iterdir()] == ["K-000001"]


def test_a_base_that_is_a_link_is_refused(tmp_path):
    (one,) = sources(tmp_path / "raw", "a")
    base = tmp_path / "studio"
    base.symlink_to(tmp_path / "raw")
    with pytest.raises(DataError, match="is a link itself"):
        link_folders(base, {"K-000001": (one,)})


def test_a_file_system_without_links(tmp_path, monkeypatch):
    (one,) = sources(tmp_path / "raw", "a")

    def refuse(*_, **__):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    base = tmp_path / "studio"
    with pytest.raises(DataError, match="use a file system with symbolic links"):
        link_folders(base, {"K-000001": (one,)})
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("inside", ["K-000001/mine.jpg", "mine.txt", "K-000001/deep/mine.jpg"])
def test_real_data_is_never_replaced(tmp_path, inside):
    (one,) = sources(tmp_path / "raw", "a")
    mine = tmp_path / "out" / "studio" / inside
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(DataError, match="real file or folder"):
        link_folders(tmp_path / "out" / "studio", {"K-000001": (one,)})
    assert mine.read_text() == "precious"
