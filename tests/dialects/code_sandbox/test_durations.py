"""Go's durations: what is read, what is refused, how it is printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.dialects.code_sandbox.durations import LONGEST_NS, SECOND_NS, BadDuration, format_ns, parse_ns

READ = {
    "5s": 5 * SECOND_NS,
    "+5s": 5 * SECOND_NS,
    "00005s": 5 * SECOND_NS,
    "500ms": 500_000_000,
    ".5s": 500_000_000,
    "1.s": SECOND_NS,
    "1h30m": 5400 * SECOND_NS,
    "30m1h": 5400 * SECOND_NS,
    "1m1m": 120 * SECOND_NS,
    "500us": 500_000,
    "500\u00b5s": 500_000,
    "500\u03bcs": 500_000,
    "1.9ns": 1,
    "0.3ns": 0,
    "0": 0,
    "+0": 0,
    "-0": 0,
    "0s": 0,
    "-0s": 0,
    "-5s": -5 * SECOND_NS,
    "-1.5h": -5400 * SECOND_NS,
    "9223372036854775807ns": LONGEST_NS,
    "-9223372036854775808ns": -LONGEST_NS - 1,
    "2562047h47m16.854775807s": LONGEST_NS,
    "0.3333333333333333333h": 20 * 60 * SECOND_NS,
    "0.100000000000000000000h": 6 * 60 * SECOND_NS,
    "0.830103483285477580700h": 49 * 60 * SECOND_NS + 48 * SECOND_NS + 372_539_827,
}
REFUSED = [
    "", "5", "1.5", "-1", "1h1", "3s3", "1.5.5s", "1d", "1w", "1min", "1sec", "2S", "2MS", "1 s", "1m 30s", "1,5s",
    "1e3s", "1_000ms", "0x10s", "s", ".s", ".", "-.s", "infs", "nan", "\uff11s", "\u0661s", "1h-30m", "--1s", "+", "-",
    "9223372036854775808ns", "-9223372036854775809ns", "2562047h47m16.854775808s", "9223372036854775807s",
    "9" * 10_000 + "s",
    " 2s", "2s ", "1s\n",
]  # fmt: skip
PRINTED = {
    0: "0s",
    1: "1ns",
    1500: "1.5µs",
    2_000_000: "2ms",
    1_500_000_000: "1.5s",
    3_300_000_000: "3.3s",
    90 * SECOND_NS: "1m30s",
    3600 * SECOND_NS: "1h0m0s",
    3661_500_000_000: "1h1m1.5s",
    60 * SECOND_NS: "1m0s",
    LONGEST_NS: "2562047h47m16.854775807s",
    -90 * SECOND_NS: "-1m30s",
}


@pytest.mark.parametrize("text", READ)
def test_what_go_reads_is_read_to_the_nanosecond(text: str) -> None:
    assert parse_ns(text) == READ[text]


@pytest.mark.parametrize("text", REFUSED)
def test_what_go_refuses_is_refused(text: str) -> None:
    with pytest.raises(BadDuration):
        parse_ns(text)


@pytest.mark.parametrize("length_ns", PRINTED)
def test_durations_are_printed_as_go_prints_them(length_ns: int) -> None:
    assert format_ns(length_ns) == PRINTED[length_ns]


@given(st.integers(-LONGEST_NS, LONGEST_NS))
def test_what_is_printed_is_read_again(length_ns: int) -> None:
    assert parse_ns(format_ns(length_ns)) == length_ns


@given(st.text(alphabet="0123456789.+-nusµmh e_\u0661", max_size=12) | st.text(max_size=12))
def test_any_text_is_a_duration_within_64_bits_or_none(text: str) -> None:
    try:
        length_ns = parse_ns(text)
    except BadDuration:
        return
    assert -LONGEST_NS - 1 <= length_ns <= LONGEST_NS


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(["ns", "us", "ms", "s", "m"])), min_size=1, max_size=5)
)
def test_terms_add_up_in_any_order(terms: list[tuple[int, str]]) -> None:
    def text(terms: list[tuple[int, str]]) -> str:
        return "".join(f"{number}{unit}" for number, unit in terms)

    assert parse_ns(text(terms)) == parse_ns(text(terms[::-1])) == sum(parse_ns(text([one])) for one in terms)
