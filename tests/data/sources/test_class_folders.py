import pytest

from pillsnap.data.names import DOMAINS
from pillsnap.data.sources import ClassFolderSource


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_name_is_believed(tmp_path, domain):
    folder = tmp_path / "K-030864"
    folder.mkdir()
    (folder / "K-000059_4_2_1_0_90_045_200.jpg").touch()  # like the protocol, and even of another drug
    source = ClassFolderSource(tmp_path, domain)
    (drug_folder,) = source.folders(["K-030864"])["K-030864"]
    (picture,) = source.pictures(drug_folder, "K-030864", "link")
    assert (picture.condition, picture.named, picture.domain) == (None, False, domain)
