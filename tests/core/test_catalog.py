import json
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.core.catalog import Catalog, Drug, edi_codes, normalize_kcode
from pillsnap.core.errors import CatalogError, DataError


def drug(kcode="K-030864", **more):
    return {"kcode": kcode, "drug_name": "이름", **more}


def write(path, *drugs, **more):
    text = json.dumps({"drugs": list(drugs), **more}, ensure_ascii=False)
    path.write_text(text.replace("\ud800", "\\ud800"), encoding="utf-8")
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


@pytest.mark.parametrize(
    "text",
    [
        "Ｋ－０３０８６４",
        "ｋ３０８６４",
        "K – 30864",
        "K\u221230864",
        "\u3000K-030864\u00a0",
        "K 30864",
        "30864",
        30864,
    ],
)
def test_what_a_korean_keyboard_or_a_table_makes_of_it(text):
    assert normalize_kcode(text) == "K-030864"


@pytest.mark.parametrize(
    "text",
    [
        *("", "K-", "K-ABC", "K-1234567", "K-12 34", "X-030864", "K--030864", "K-000059_json", "-1", "1.0", "True"),
        *("K-²", "K-①", "K-٣", "\u212a-1", "K-030864-1"),
    ],
)
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
        ([drug("K-1"), drug("K-2", retired=True)], "K-000002: retired: a list holds drugs in use"),
        ([drug("K-1"), drug("K-2", retired="yes")], "drug 2: retired: Input should be a valid boolean"),
        ([drug("K-1"), drug("K-2", note="\ud800")], "cannot hold"),
        ([drug("K-1"), drug("K-2", note=float("inf"))], "cannot hold"),
        ([drug("K-1"), 5], "drug 2"),
        (
            [drug("K-1"), drug("K-2", drug_name=" \u200b ")],
            "drug 2: drug_name: .* at least 1 ",
        ),
        ([drug("K-1"), drug("K-2", manufacturer="a\x1b[31m")], r"drug 2: manufacturer: .*control character U\+001B"),
        ([drug("K-1"), drug("\u041a-2")], r"drug 2: K-CODE .*CYRILLIC CAPITAL LETTER KA \(U\+041A\)"),
    ],
)
def test_bad_lists_name_file_drug_and_field(tmp_path, drugs, message):
    path = write(tmp_path / "drugs.json", *drugs)
    with pytest.raises(CatalogError, match=message) as error:
        Catalog.from_drug_list(path)
    assert str(error.value).startswith(str(path))


def test_names_are_one_line(tmp_path):
    forged = drug("K-1", drug_name="다솜정\n  1.  99.9%  가짜약", manufacturer="\u202e회사")
    catalog = Catalog.from_drug_list(write(tmp_path / "drugs.json", forged, drug("K-2"), created_date=None))
    assert (catalog.drugs[0].drug_name, catalog.drugs[0].manufacturer) == ("다솜정   1.  99.9%  가짜약", "회사")
    assert catalog.created_date == ""
    with pytest.raises(CatalogError, match=r"total_drugs is '2', but .* as the number 2"):
        Catalog.from_drug_list(write(tmp_path / "drugs.json", drug("K-1"), drug("K-2"), total_drugs="2"))


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


def test_the_file_as_people_save_it(tmp_path):
    """With a byte-order mark; not in the code page of an old Korean Windows."""
    path = write(tmp_path / "drugs.json", drug(1), drug(30864))
    text = path.read_text(encoding="utf-8")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8"))
    assert Catalog.from_drug_list(path).kcodes == ("K-000001", "K-030864")
    path.write_bytes(text.encode("cp949"))
    with pytest.raises(DataError, match=r"drugs\.json: is not readable JSON .*; save it as UTF-8"):
        Catalog.from_drug_list(path)


def test_korean_text_is_kept_byte_for_byte(tmp_path):
    """Decomposed as macOS writes it, composed, with marks that normalisation would change: never touched."""
    texts = [unicodedata.normalize("NFD", "타이레놀정500밀리그람"), "타이레놀정", "㎎ ﹙수출용﹚ Å \u200b "]
    entries = [drug(f"K-{n}", drug_name=text, markings={text: [text]}) for n, text in enumerate(texts)]
    catalog = Catalog.from_drug_list(write(tmp_path / "drugs.json", *entries))
    catalog.write_class_mapping(tmp_path / "class_mapping.json")
    raw = (tmp_path / "class_mapping.json").read_bytes()
    again = Catalog.from_class_mapping(tmp_path / "class_mapping.json").class_mapping()["metadata"]
    for n, text in enumerate(texts):
        entry = again[f"K-{n:06d}"]
        assert (entry["drug_name"], entry["markings"]) == (text, {text: [text]})
        assert json.dumps(text, ensure_ascii=False).encode() in raw


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "drugs.json"
    path.write_text('{"drugs": [{"kcode": "K-1", "drug_name": "a", "drug_name": "b"}, {"kcode": "K-2"}]}')
    with pytest.raises(DataError, match=r"drugs\.json: the key 'drug_name' stands twice .* \{\"kcode\": \"K-1\"\}"):
        Catalog.from_drug_list(path)


@pytest.mark.parametrize("total", [3, "2", True, None])
def test_a_list_of_another_length_than_it_says_is_refused(tmp_path, total):
    path = write(tmp_path / "drugs.json", drug("K-1"), drug("K-2"), total_drugs=total)
    with pytest.raises(CatalogError, match=r"drugs\.json: total_drugs is .*, but the list holds 2 drugs"):
        Catalog.from_drug_list(path)
    assert Catalog.from_drug_list(write(path, drug("K-1"), drug("K-2"), total_drugs=2)).kcodes[1] == "K-000002"


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("", ()),
        (None, ()),
        ("645100070", ("645100070",)),
        (645100070, ("645100070",)),
        (" 645100070,64510071 ，６４５１００７２,645100070,", ("645100070", "64510071", "64510072")),
    ],
)
def test_edi_codes(text, codes):
    assert edi_codes(text) == codes


@pytest.mark.parametrize("text", ["1234567", "1234567890", "64510007a", "645100070 645100071", "-12345678"])
def test_what_is_no_edi_code_is_refused(text):
    with pytest.raises(CatalogError, match="is not 8 or 9 digits"):
        edi_codes(f"645100070,{text}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"class_to_idx": {"K-000001": 1, "K-000002": 0}}, "index 0 is K-000002 in class_to_idx and K-000001 in idx"),
        ({"class_to_idx": {"K-000001": 0, "K-000002": 2}}, "must be 0 to 1, each one once"),
        ({"class_to_idx": {"K-000001": 0, "K-000002": 0}}, "must be 0 to 1, each one once"),
        ({"class_to_idx": {"K-000001": 0, "K-000002": True}}, "must be 0 to 1, each one once"),
        ({"class_to_idx": {"K-000001": 0, "K-000002": None}}, "is not a class_mapping.json"),
        ({"idx_to_class": {"0": "K-000001"}}, "index 1 is K-000002 in class_to_idx and None in idx_to_class"),
        ({"idx_to_class": {"0": "K-000001", "1": "K-000002", "2": "K-000003"}}, "index 2 is None"),
        ({"idx_to_class": []}, "is not a class_mapping.json"),
        ({"num_classes": 3}, "num_classes is 3, but class_to_idx has 2 indices"),
        ({"metadata": {}}, r"only in one: K-000001, K-000002"),
        ({"metadata": {"K-000001": drug("K-1"), "K-000002": drug("K-3")}}, r"metadata\.K-000002: kcode is K-000003"),
        ({"metadata": {"K-000001": drug("K-1"), "K-000002": drug("K-")}}, r"metadata\.K-000002: K-CODE 'K-'"),
        ({"metadata": {"K-000001": drug("K-1"), "K-000002": {}}}, r"metadata\.K-000002: kcode: Field required"),
        (
            {"metadata": {"K-000001": drug("K-1", retired=True), "K-000002": drug("K-2")}},
            "at least 2 drugs are needed, 1 found",
        ),
        ({"class_to_idx": 3}, "is not a class_mapping.json"),
    ],
)
def test_damaged_class_mappings(tmp_path, damage, message):
    catalog = Catalog.from_drug_list(write(tmp_path / "drugs.json", drug("K-1"), drug("K-2")))
    path = tmp_path / "class_mapping.json"
    path.write_text(json.dumps({**catalog.class_mapping(), **damage}))
    with pytest.raises(CatalogError, match=message) as error:
        Catalog.from_class_mapping(path)
    assert str(error.value).startswith(str(path))


def test_a_list_a_mapping_or_the_folder_of_one(tmp_path):
    listed = write(tmp_path / "drugs.json", drug("K-2"), drug("K-1"))
    assert Catalog.load(tmp_path) == Catalog.load(listed) == Catalog.from_drug_list(listed)
    mapping = Catalog.from_drug_list(listed).updated(of("K-000003", "K-000001"))
    mapping.write_class_mapping(tmp_path / "class_mapping.json")
    assert Catalog.load(str(tmp_path)) == Catalog.load(tmp_path / "class_mapping.json") == mapping
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalogError, match=r"empty: holds neither class_mapping\.json nor drugs\.json"):
        Catalog.load(tmp_path / "empty")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(CatalogError, match=r"other\.json: neither a drug list"):
        Catalog.load(tmp_path / "other.json")


# --- indices


def of(*kcodes, version="1", **more):
    return Catalog(version=version, drugs=tuple(Drug(kcode=kcode, drug_name=f"약 {kcode}", **more) for kcode in kcodes))


def test_a_new_list_adds_retires_and_brings_back(tmp_path):
    first = of("K-000005", "K-000003", "K-000001", note="old", training_config={"weight": 3.0})
    second = first.updated(of("K-000007", "K-000003", "K-000002", version="2", note="new"))
    assert second.class_to_idx == {"K-000005": 0, "K-000003": 1, "K-000001": 2, "K-000007": 3, "K-000002": 4}
    assert second.retired_indices == (0, 2)
    assert [drug.kcode for drug in second.active] == ["K-000003", "K-000007", "K-000002"]
    assert second.version == "2"
    assert second.class_weights == (0.0, 1.0, 0.0, 1.0, 1.0)
    metadata = second.class_mapping()["metadata"]
    assert metadata["K-000003"]["note"] == "new"
    assert metadata["K-000001"] == {**first.class_mapping()["metadata"]["K-000001"], "retired": True}
    third = second.updated(of("K-000001", "K-000009", note="back"))
    assert third.class_to_idx == {**second.class_to_idx, "K-000009": 5}
    assert third.retired_indices == (0, 1, 3, 4)
    assert "retired" not in third.class_mapping()["metadata"]["K-000001"]
    assert third.class_mapping()["metadata"]["K-000001"]["note"] == "back"


def test_the_published_form_says_who_is_retired(tmp_path):
    plain = of("K-000001", "K-000002", "K-000003")
    assert plain.class_mapping().keys().isdisjoint({"retired", "num_active"})  # manifests made before keep their hash
    assert "retired" not in json.dumps(plain.class_mapping())
    mapping = plain.updated(of("K-000003", "K-000001"))
    document = mapping.class_mapping()
    assert (document["num_classes"], document["num_active"], document["retired"]) == (3, 2, ["K-000002"])
    assert document["idx_to_class"] == {"0": "K-000001", "1": "K-000002", "2": "K-000003"}
    mapping.write_class_mapping(tmp_path / "class_mapping.json")
    assert Catalog.from_class_mapping(tmp_path / "class_mapping.json") == mapping


LISTS = st.lists(
    st.lists(st.integers(1, 9), min_size=2, max_size=9, unique=True).map(
        lambda numbers: of(*[f"K-{number:06d}" for number in numbers])
    ),
    min_size=1,
    max_size=8,
)


@given(LISTS)
def test_an_index_is_never_shifted_or_used_again(lists):
    mapping = lists[0]
    owner = dict(enumerate(mapping.kcodes))
    for number, new_list in enumerate(lists[1:]):
        named = Catalog(
            version=str(number), drugs=tuple(d.model_copy(update={"drug_name": f"{number}"}) for d in new_list.drugs)
        )
        before, mapping = mapping, mapping.updated(named)
        for index, kcode in enumerate(mapping.kcodes):
            assert owner.setdefault(index, kcode) == kcode
        assert len(set(mapping.kcodes)) == len(mapping.kcodes) == len(owner)
        assert {drug.kcode for drug in mapping.active} == set(named.kcodes)
        assert all(drug.drug_name == f"{number}" for drug in mapping.active)
        for index in mapping.retired_indices:
            assert mapping.drugs[index] == before.drugs[index].model_copy(update={"retired": True})
        new = [kcode for kcode in named.kcodes if kcode not in before.kcodes]
        assert list(mapping.kcodes[len(before.kcodes) :]) == new
        assert mapping.updated(named) == mapping
