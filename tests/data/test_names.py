import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillsnap.data.names import Condition, combination_kcodes, kcode_of_name, parse_condition


def test_studio_order_is_background_side_light():
    condition = parse_condition("K-000573_0_2_0_1_75_300_200.png", "studio")
    assert condition == Condition(background=2, light=1, side=0, elevation=75, rotation=300)


def test_capture_order_is_background_light_side():
    condition = parse_condition("K-030864_4_2_1_0_90_045_200.jpg", "real")
    assert condition == Condition(background=4, light=2, side=1, elevation=90, rotation=45)


@pytest.mark.parametrize(("word", "side"), [("front", 0), ("back", 1), ("Back", 1)])
def test_side_as_a_word(word, side):
    condition = parse_condition(f"k30864_0_1_{word}_0_90_045_200.JPG", "real")
    assert condition is not None
    assert condition.side == side


@pytest.mark.parametrize(
    "name",
    [
        "capsule_000.jpg",
        "K-030864.jpg",
        "K-030864_0_1_2_0_90_045_200.jpg",  # side 2
        "K-030864_0_1_0_0_90_360_200.jpg",  # a full turn
        "K-030864_0_1_0_0_91_045_200.jpg",  # past straight above
        "K-030864_0_1_0_0_90_045.jpg",  # one field too few
        "K-030864_0_-1_0_0_90_045_200.jpg",
        "K-030864_0_²_0_0_90_045_200.jpg",
        "K-001900-010224-016551-031705_0_2_0_2_75_000_200.png",  # a combination of pills
        "",
    ],
)
def test_names_without_fields(name):
    assert parse_condition(name, "real") is None


def test_kcode_of_name():
    assert kcode_of_name("k573_0.png") == "K-000573"
    assert kcode_of_name("20240101_120000.jpg") is None
    assert kcode_of_name("Kitchen_1.jpg") is None


@given(
    st.integers(0, 99), st.integers(0, 99), st.integers(0, 1), st.integers(0, 90), st.integers(0, 359), st.integers(0)
)
def test_every_condition_survives_both_schemes(background, light, side, elevation, rotation, code):
    kcode = f"K-{code % 1_000_000:06d}"
    expected = Condition(background, light, side, elevation, rotation)
    studio = f"{kcode}_0_{background}_{side}_{light}_{elevation}_{rotation:03d}_200.png"
    real = f"{kcode}_{background}_{light}_{side}_0_{elevation}_{rotation:03d}_200.jpg"
    assert parse_condition(studio, "studio") == expected
    assert parse_condition(real, "real") == expected


def test_a_combination_names_its_pills():
    name = "K-001900-010224-016551-031705_0_2_0_2_75_000_200.png"
    assert parse_condition(name, "studio") == Condition(background=2, light=2, side=0, elevation=75, rotation=0)
    assert kcode_of_name(name) is None
    assert combination_kcodes("k001900-010224") == ("K-001900", "K-010224")


@pytest.mark.parametrize(
    "text", ["K-001900", "K-1900-10224", "K-001900-010224-", "K-٠٠١٩٠٠-٠١٠٢٢٤", "K-001900-010224\n"]
)
def test_what_is_no_combination(text):
    assert combination_kcodes(text) == ()


@given(st.text(max_size=60) | st.text("K-_0123456789٣２", max_size=40), st.sampled_from(["studio", "real"]))
def test_no_text_makes_it_fail(name, domain):
    parse_condition(name, domain)
    kcode_of_name(name)
    combination_kcodes(name)
