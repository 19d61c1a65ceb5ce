"""What every source keeps to (see `pillsnap.data.sources.base`), and which one reads what."""

import pytest

from pillsnap.core.errors import ConfigError, DataError
from pillsnap.data.sources import AiHubSource, CaptureSource, ClassFolderSource, open_source, raw_layout

WANTED = ("K-000059", "K-030864")


@pytest.fixture(
    params=[AiHubSource, CaptureSource, lambda root: ClassFolderSource(root, "studio")],
    ids=["aihub", "capture", "folders"],
)
def make(request):
    return request.param


class TestConformance:
    def folders(self, make, root, **more):
        found = make(root).folders(WANTED, **more)
        return {kcode: [one.path.relative_to(root).as_posix() for one in each] for kcode, each in found.items()}

    def test_folders_of_wanted_drugs_at_any_depth_sorted(self, make, tmp_path):
        for folder in ("b/K-000059", "a/deep/K-000059", "K-030864", "K-777777", "a/K-000059_json"):
            (tmp_path / folder).mkdir(parents=True)
        assert self.folders(make, tmp_path) == {"K-000059": ["a/deep/K-000059", "b/K-000059"], "K-030864": ["K-030864"]}

    @pytest.mark.parametrize("name", ["K-000059", "k-000059", "K59", "59", "000059", "Ｋ－000059"])
    def test_any_spelling_of_the_folder(self, make, tmp_path, name):
        (tmp_path / name).mkdir()
        assert self.folders(make, tmp_path) == {"K-000059": [name]}

    def test_the_output_inside_the_source_is_left_out(self, make, tmp_path):
        source = tmp_path / "K-000059"
        source.mkdir()
        (tmp_path / "out" / "studio").mkdir(parents=True)
        (tmp_path / "out" / "studio" / "K-000059").symlink_to(source)
        assert self.folders(make, tmp_path, skip=tmp_path / "out") == {"K-000059": ["K-000059"]}
        with pytest.raises(DataError, match="at once"):
            make(tmp_path).folders(WANTED, skip=tmp_path)

    def test_a_missing_root_and_a_root_without_drugs_say_what_to_do(self, make, tmp_path):
        with pytest.raises(DataError, match="no such folder; give the one"):
            make(tmp_path / "none").folders(WANTED)
        (tmp_path / "K-777777").mkdir()
        with pytest.raises(DataError, match="no folder of any of the 2 drugs"):
            make(tmp_path).folders(WANTED)

    def test_pictures_of_a_folder_by_ending_not_by_content(self, make, tmp_path):
        folder = tmp_path / "K-000059"
        for name in ("b.PNG", "a.jpg", "deep/c.JPEG", "d.webp", "e.HEIC", "f.heif", "notes.txt", "K-000059_json/g.png"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        source = make(tmp_path)
        (drug_folder,) = source.folders(WANTED)["K-000059"]
        found = list(source.pictures(drug_folder, "K-000059", "link/K-000059"))
        assert [one.path for one in found] == [
            f"link/K-000059/{name}" for name in ("a.jpg", "b.PNG", "d.webp", "deep/c.JPEG", "e.HEIC", "f.heif")
        ]
        assert [one.source.relative_to(folder).as_posix() for one in found[:4]] == [
            "a.jpg", "b.PNG", "d.webp", "deep/c.JPEG",
        ]  # fmt: skip
        assert {(one.kcode, one.domain) for one in found} == {("K-000059", source.domain)}

    def test_no_file_is_opened(self, make, tmp_path, monkeypatch):
        (tmp_path / "K-000059").mkdir()
        (tmp_path / "K-000059" / "a.jpg").touch()
        opened = []
        monkeypatch.setattr("builtins.open", lambda *args, **_: opened.append(args))
        monkeypatch.setattr("pathlib.Path.open", lambda *args, **_: opened.append(args))
        source = make(tmp_path)
        (folder,) = source.folders(WANTED)["K-000059"]
        assert len(list(source.pictures(folder, "K-000059", "link"))) == 1
        assert not opened


@pytest.mark.parametrize(
    ("domain", "layout", "kind"),
    [
        ("studio", "auto", AiHubSource),
        ("studio", "aihub", AiHubSource),
        ("studio", "folders", ClassFolderSource),
        ("real", "auto", CaptureSource),
        ("real", "capture", CaptureSource),
        ("real", "folders", ClassFolderSource),
    ],
)
def test_which_source_reads_what(tmp_path, domain, layout, kind):
    source = open_source(tmp_path, domain, layout)
    assert type(source) is kind
    assert source.domain == domain


@pytest.mark.parametrize(("domain", "layout"), [("studio", "capture"), ("real", "aihub"), ("real", "zip")])
def test_a_layout_of_the_other_domain_is_refused(tmp_path, domain, layout):
    with pytest.raises(ConfigError, match=f"'{layout}' is not one of {domain}"):
        open_source(tmp_path, domain, layout)


def test_a_raw_folder(tmp_path):
    assert raw_layout(tmp_path) == (tmp_path / "drugs.json", None, None)
    (tmp_path / "studio").mkdir()
    (tmp_path / "real_photos").mkdir()
    assert raw_layout(tmp_path) == (tmp_path / "drugs.json", tmp_path / "studio", tmp_path / "real_photos")
