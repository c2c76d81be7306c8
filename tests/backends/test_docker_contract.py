"""The contract of `Backend` on containers of a Docker engine of our own: its core always, all of it in a long run."""

from collections.abc import AsyncIterator

import pytest

from stockade.backends.base import Backend
from tests.backends import test_contract
from tests.docker_engine import docker_backend, docker_engine, is_long

pytestmark = pytest.mark.anyio

CORE = (
    "test_output_streams_come_apart_and_unchanged",
    "test_output_can_be_seen_while_the_program_runs",
    "test_a_program_that_is_not_there_counts_as_a_shell_counts_it",
    "test_files_are_there_before_the_program_starts",
    "test_the_user_is_nobody_special",
    "test_nothing_survives_its_run",
    "test_the_wall_limit_ends_a_sleeper",
    "test_the_cpu_limit_ends_a_spinner",
    "test_the_memory_limit_ends_a_hog",
    "test_the_process_limit_refuses_more",
    "test_the_disk_limit_counts_bytes",
    "test_the_output_limit_ends_a_flood",
    "test_there_is_no_network_but_its_own_loopback",
    "test_what_one_sandbox_made_another_one_runs",
    "test_the_sandbox_is_dead_when_the_cancellation_comes_back",
    "test_what_cannot_be_described_to_the_kernel_is_invalid",
    "test_another_network_is_unsupported",
)
OF_NATIVE_ALONE = ("test_closing_twice_is_closing_once",)

globals().update(
    {
        name: test
        for name, test in vars(test_contract).items()
        if name.startswith("test_") and name not in OF_NATIVE_ALONE and (is_long or name in CORE)
    }
)


@pytest.fixture(scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Backend]:
    with docker_engine(tmp_path_factory.mktemp("docker")) as engine:
        async with docker_backend(engine, tmp_path_factory.mktemp("data")) as backend:
            yield backend
