"""What the soak says of what it has seen."""

from bench.soak import MIB, Look, Plan, Soak, judge

COUNTS = {"control groups": 40, "warden descriptors": 100, "processes": 6}


def soaked(*, leak_mib: float = 0.0, slower_ms: float = 0.0, after: dict[str, int] | None = None) -> Soak:
    """An hour of samples, of a server that leaks that much in it and slows down by so much."""
    looks = [
        Look(at_s=10.0 * number, memory={"server": int((60 + leak_mib * number / 360) * MIB)}, counts=COUNTS, kernel={})
        for number in range(360)
    ]
    latencies = [
        {"p50_s": (5 + slower_ms * number / 60) / 1e3, "p99_s": 9e-3, "runs": 100, "refused": 0} for number in range(60)
    ]
    found = Soak(plan=Plan(seconds=3600.0), saturation=100.0, before=dict(COUNTS), looks=looks, latencies=latencies)
    found.after = COUNTS | (after or {})
    return found


def verdicts(found: Soak) -> list[bool | None]:
    """On memory, counts, latency, and what is left behind."""
    return [figure.met for figure in judge(found)[1]]


def test_what_stays_as_it_is_passes() -> None:
    assert verdicts(soaked()) == [True, True, True, True]


def test_a_leak_of_two_megabytes_an_hour_is_growth() -> None:
    assert verdicts(soaked(leak_mib=2.5)) == [False, True, True, True]


def test_a_fifth_slower_after_an_hour_is_drift() -> None:
    assert verdicts(soaked(slower_ms=1.25)) == [True, True, False, True]


def test_a_process_more_in_the_end_is_left_behind() -> None:
    assert verdicts(soaked(after={"processes": 7})) == [True, True, True, False]


def test_fewer_cells_in_the_end_are_no_fault() -> None:
    assert verdicts(soaked(after={"processes": 3, "control groups": 12})) == [True, True, True, True]


def test_a_few_groups_more_are_kept_for_reuse_and_many_are_a_leak() -> None:
    assert verdicts(soaked(after={"control groups": 48})) == [True, True, True, True]
    assert verdicts(soaked(after={"control groups": 80})) == [True, True, True, False]
