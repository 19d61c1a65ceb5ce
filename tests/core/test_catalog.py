import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.catalog import Catalog, normalize_kcode
from pillsnap.core.errors import CatalogError, DataError


def drug(kcode="K-030864", **more):
    return {"kcode": kcode, "drug_name": "이름", **more}


def write(path, *drugs, **more):
    path.write_text(json.dumps({"drugs": list(drugs), **more}, ensure_ascii=False), encoding="utf-8")
    return path


@given(st.integers(0, 999_999), st.sampled_from(["K-{:06d}", "K{}", "k-{:06d}", "{}", " k{} ", "{:06d}\n"]))
def test_careless_spellings_come_to_one_form(number, form):
    assert normalize_kcode(form.format(number)) == f"K-{number:06d}"


@given(st.text(max_size=12))
def test_whatever_comes_out_is_a_kcode_and_stays_one(text):
    try:
        kcode = normalize_kcode(text)
    except CatalogError:
        return
    assert re.fullmatch(r"K-[0-9]{6}", kcode)
    assert normalize_kcode(kcode) == kcode


@pytest.mark.parametrize("text", ["", "K-", "K-ABC", "K-1234567", "K-12 34", "X-030864", "K--030864", "K-000059_json"])
def test_others_are_refused(text):
    with pytest.raises(CatalogError, match="is not of the form K-030864"):
        normalize_kcode(text)


def test_indices_are_the_order_of_the_list_and_fields_are_kept(tmp_path):
    path = write(
        tmp_path / "drugs.json",
        drug("k-2", training_config={"weight": 2.5, "augmentation_level": "heavy"}, markings={"front": "십자분할선"}),
        drug("1", edi_code="1,2"),
        version="3",
        created_date="2026-01-02",
    )
    catalog = Catalog.from_drug_list(path)
    assert catalog.class_to_idx == {"K-000002": 0, "K-000001": 1}
    assert catalog.class_weights == (2.5, 1.0)
    catalog.write_class_mapping(tmp_path / "class_mapping.json")
    again = Catalog.from_class_mapping(tmp_path / "class_mapping.json")
    assert again.class_mapping() == catalog.class_mapping()
    metadata = again.class_mapping()["metadata"]
    assert metadata["K-000002"]["markings"] == {"front": "십자분할선"}
    assert metadata["K-000002"]["training_config"] == {"weight": 2.5, "augmentation_level": "heavy"}
    assert metadata["K-000001"]["edi_code"] == "1,2"


@pytest.mark.parametrize(
    ("drugs", "message"),
    [
        ([drug("K-1"), drug("K-")], "drug 2: K-CODE 'K-'"),
        ([drug("K-1"), {"drug_name": "x"}], "drug 2: kcode: Field required"),
        ([drug("K-1"), {"kcode": "K-2"}], "drug 2: drug_name: Field required"),
        ([drug("K-1"), drug("K-2", training_config={"weight": 0})], r"drug 2: training_config\.weight"),
        ([drug("K-1"), drug("k-000001")], r"K-000001 is listed twice \(drugs 1 and 2\)"),
        ([drug("K-1")], "at least 2 drugs"),
        ([drug("K-1"), 5], "drug 2"),
    ],
)
def test_bad_lists_name_file_drug_and_field(tmp_path, drugs, message):
    path = write(tmp_path / "drugs.json", *drugs)
    with pytest.raises(CatalogError, match=message) as error:
        Catalog.from_drug_list(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("text", ["[]", "{}", '{"drugs": {}}'])
def test_not_a_list(tmp_path, text):
    (tmp_path / "drugs.json").write_text(text)
    with pytest.raises(CatalogError, match='list under "drugs"'):
        Catalog.from_drug_list(tmp_path / "drugs.json")


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Catalog.from_drug_list(tmp_path / "none.json")
    (tmp_path / "drugs.json").write_text('{"drugs": [')
    with pytest.raises(DataError, match="not readable JSON"):
        Catalog.from_drug_list(tmp_path / "drugs.json")


@pytest.mark.parametrize(
    "damage", [{"class_to_idx": {"K-000001": 1, "K-000002": 0}}, {"metadata": {}}, {"class_to_idx": 3}]
)
def test_damaged_class_mappings(tmp_path, damage):
    catalog = Catalog.from_drug_list(write(tmp_path / "drugs.json", drug("K-1"), drug("K-2")))
    path = tmp_path / "class_mapping.json"
    path.write_text(json.dumps({**catalog.class_mapping(), **damage}))
    with pytest.raises(CatalogError, match=r"class_mapping\.json"):
        Catalog.from_class_mapping(path)
