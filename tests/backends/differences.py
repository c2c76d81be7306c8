"""In what backends differ from what the suites say of all: by name, and why."""

import os

__all__ = ["CORE", "DIFFERENT", "SUITES"]

SUITES = {
    "docker": (),  # it has suites of its own, on an engine of the tests' own
    "gvisor": ("test_contract",),
}
"""Which suites are run on a backend; all on those that are not named."""

_CORE = (
    "test_output_streams_come_apart_and_unchanged",
    "test_output_can_be_seen_while_the_program_runs",
    "test_stdin_is_what_was_given_and_then_ends",
    "test_a_program_that_is_not_there_counts_as_a_shell_counts_it",
    "test_files_are_there_before_the_program_starts",
    "test_nothing_survives_its_run",
    "test_the_wall_limit_ends_a_sleeper",
    "test_the_cpu_limit_ends_a_spinner",
    "test_the_memory_limit_ends_a_hog",
    "test_the_disk_limit_counts_bytes",
    "test_the_disk_limit_counts_files",
    "test_the_output_limit_ends_a_flood",
    "test_there_is_no_network_but_its_own_loopback",
    "test_what_cannot_be_described_to_the_kernel_is_invalid",
    "test_another_network_is_unsupported",
)
CORE = {} if os.environ.get("STOCKADE_LONG_TESTS") else {"gvisor": _CORE}
"""Of those, what is run where time counts."""

DIFFERENT = {
    "gvisor": {
        "test_the_environment_is_what_was_given_and_nothing_else": "gVisor sets HOME where it is not given",
        "test_the_user_is_nobody_special": "gVisor's /proc/self/status knows no NoNewPrivs, and our filter is outside",
        "test_the_process_limit_refuses_more": "gVisor ends with a program that outgrows its threads",
        "test_what_one_sandbox_made_another_one_runs": "stat(1) asks statx(2) for what releases before 2023 refuse",
        "test_the_sandbox_is_dead_when_the_cancellation_comes_back": "the host sees no tenant's process by its name",
    }
}
"""Tests that are left out, with the reason; `test_gvisor` and its like say what is so instead."""
