"""The boxlite wire: what clients send and get. docs/dialects/boxlite.md has the whole protocol.

Types are strict: `true` is no number, `5` is no string. Unknown members are ignored, since clients of several
generations come to one server, and `null` is the same as nothing.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stockade.errors import Invalid

__all__ = [
    "AliasBody",
    "Answer",
    "BadBody",
    "BoxAnswer",
    "BoxMetricsAnswer",
    "BoxesAnswer",
    "CloneBody",
    "ConfigAnswer",
    "CreateBody",
    "Error",
    "ForkBody",
    "ImageAnswer",
    "ImageUsageAnswer",
    "ImagesAnswer",
    "InboundBody",
    "MeAnswer",
    "MetricsAnswer",
    "NetworkBody",
    "OutboundBody",
    "PruneBody",
    "PrunedAnswer",
    "PullBody",
    "PulledAnswer",
    "RegistriesAnswer",
    "RegistryAnswer",
    "RegistryBody",
    "SecretBody",
    "SnapshotAnswer",
    "SnapshotBody",
    "SnapshotsAnswer",
    "StopBody",
    "Text",
    "TokenAnswer",
    "TunnelAnswer",
    "VolumeAnswer",
    "VolumeBody",
    "VolumeMountBody",
    "VolumesAnswer",
    "Wire",
    "checked",
]

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Mode = Literal["enabled", "disabled"]
Reference = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00]*$")]
Words = Annotated[list[Text], Field(max_length=4096)]


class BadBody(Invalid):
    """A member of the body is missing or wrong."""

    code = "boxlite.bad_body"


class Wire(BaseModel):
    """What clients send."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class OutboundBody(Wire):
    """Where a box may connect."""

    mode: Mode = "enabled"
    allow_net: Annotated[list[str], Field(max_length=256)] | None = Field(
        default=None, description="Names, `*.name` for all below one, IPv4 addresses and networks; empty: everywhere."
    )


class InboundBody(Wire):
    """Whether ports of a box can be reached from outside, by tunnels."""

    mode: Mode


class NetworkBody(Wire):
    """`mode` and `allow_net`, or `outbound` and `inbound`; not both."""

    mode: Mode | None = None
    allow_net: Annotated[list[str], Field(max_length=256)] | None = None
    outbound: OutboundBody | None = None
    inbound: InboundBody | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> "NetworkBody":
        if (self.mode or self.allow_net) and (self.outbound or self.inbound):
            raise ValueError("mode and allow_net cannot be mixed with outbound and inbound")
        return self


class SecretBody(Wire):
    """A secret that the box uses and never sees."""

    name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00=]+$")]
    value: Annotated[str, Field(min_length=1, max_length=65536, repr=False)]
    hosts: Annotated[list[str], Field(max_length=128)] | None = None
    placeholder: Annotated[str, Field(min_length=1, max_length=1024)] | None = None


class VolumeMountBody(Wire):
    managed_volume: Annotated[str, Field(min_length=1, max_length=256)] = Field(description="Id or name of a volume.")
    guest_path: Annotated[str, Field(min_length=1, max_length=4095, pattern=r"^[^\x00]+$")]
    read_only: bool | None = None


class CapabilitiesBody(Wire):
    add: Annotated[list[str], Field(max_length=64)] | None = None
    drop: Annotated[list[str], Field(max_length=64)] | None = None


class AdvancedBody(Wire):
    capabilities: CapabilitiesBody | None = None


class CreateBody(Wire):
    """A box to be made."""

    name: str | None = None
    image: Reference | None = Field(default=None, description="A reference, or `host`.")
    rootfs_path: str | None = Field(default=None, description="Refused: paths of the server are not the clients'.")
    cpus: Annotated[int, Field(ge=1, le=255)] | None = None
    memory_mib: Annotated[int, Field(ge=1, le=2**32 - 1)] | None = None
    disk_size_gb: Annotated[int, Field(ge=1, le=2**32 - 1)] | None = None
    working_dir: Annotated[str, Field(min_length=1, max_length=4095, pattern=r"^[^\x00]*$")] | None = None
    env: dict[str, Text] | None = None
    network: NetworkBody | None = None
    entrypoint: Words | None = None
    cmd: Words | None = None
    user: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="A name of the image's, or `UID[:GID]`."
    )
    secrets: Annotated[list[SecretBody], Field(max_length=64)] | None = None
    volumes: Annotated[list[VolumeMountBody], Field(max_length=64)] | None = None
    advanced: AdvancedBody | None = None
    auto_remove: bool | None = Field(default=None, description="Remove it when it stops; of clients up to 0.9.")
    auto_stop: Annotated[int, Field(ge=0, le=2**31)] | None = Field(
        default=None, description="Seconds without use after which it is stopped; 0: never."
    )
    auto_delete: Annotated[int, Field(ge=0, le=2**31)] | None = Field(
        default=None, description="Seconds after a stop until it is removed; 1: with the stop, 0: never."
    )
    auto_resume: bool | None = Field(default=None, description="Whoever uses it starts it.")
    detach: bool | None = Field(default=None, description="Has no effect: a box survives its creator's connection.")
    tty: bool | None = Field(default=None, description="Give the main command a terminal.")
    labels: dict[str, str] | None = Field(default=None, description="(Not in the reference.)")


class StopBody(Wire):
    timeout_seconds: Annotated[int | float, Field(ge=0, le=300)] | None = Field(
        default=None, description="Grace for its processes."
    )


class SnapshotBody(Wire):
    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]


class CloneBody(Wire):
    name: str | None = None
    snapshot: str | None = Field(default=None, description="Begin as this snapshot. (Not in the reference.)")


class ForkBody(Wire):
    count: Annotated[int, Field(ge=1)] = 1
    snapshot: str | None = None
    start: bool = True


class VolumeBody(Wire):
    name: str | None = None
    size_gb: Annotated[int, Field(ge=1, le=2**31)] | None = Field(default=None, description="(Not in the reference.)")


class PullBody(Wire):
    reference: Reference
    force: bool = Field(default=False, description="Ask the registry although it is here. (Not in the reference.)")


class PruneBody(Wire):
    unused_s: Annotated[int | float, Field(ge=0)] | None = Field(
        default=None, description="For so long; the operator's `registries.unused_s` if not set."
    )


class AliasBody(Wire):
    alias: Reference
    digest: str | None = None


class RegistryBody(Wire):
    registry_host: Annotated[str, Field(min_length=1, max_length=255)]
    username: Annotated[str, Field(max_length=255)]
    password: Annotated[str, Field(max_length=65536, repr=False)]
    repository_prefix: Annotated[str, Field(max_length=255)] | None = None


Body = TypeVar("Body", bound=BaseModel)


def checked(model: type[Body], value: dict[str, Any]) -> Body:
    """*value* as *model*.

    Raises:
        BadBody: it does not fit; the text names the first member that is wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # Nothing of the value itself: it may be a secret.
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = _place(first["loc"])
        if first["type"] == "missing":
            raise BadBody(f"{place} is required") from None
        message = first["msg"].removeprefix("Value error, ")
        raise BadBody(f"{place}: {message[:1].lower()}{message[1:]}") from None


def _place(location: tuple[int | str, ...]) -> str:
    """`secrets[0].name` for its location."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{str(part)[:100]}" if text else str(part)[:100]
    return text or "the body"


class Answer(BaseModel):
    """What clients get: only described here, and made as plain objects."""


class ErrorMembers(Answer):
    message: str
    type: str
    code: int = Field(description="The status; for clients up to 0.9.5.")
    request_id: str | None = None


class Error(Answer):
    error: ErrorMembers
    message: str
    code: str = Field(description="What is wrong, for a program; for clients from 0.9.7 on.")


class TokenAnswer(Answer):
    access_token: str
    token_type: Literal["bearer"]
    expires_in: int = Field(description="Seconds.")
    scope: str


class MeAnswer(Answer):
    sub: str
    principal_type: Literal["user", "service_account"]
    scopes: list[str]
    email: str | None
    display_name: str | None
    path_prefix: str | None
    expires_at: str | None


class ConfigAnswer(Answer):
    defaults: dict[str, Any]
    overrides: dict[str, Any]
    capabilities: dict[str, Any]


class BoxAnswer(Answer):
    box_id: str = Field(description="A ULID.")
    name: str | None
    status: Literal["configured", "running", "stopping", "stopped", "paused", "failed"]
    created_at: str
    updated_at: str
    pid: int | None
    image: str
    cpus: int
    memory_mib: int
    labels: dict[str, str]
    auto_stop: int
    auto_delete: int
    auto_resume: bool
    exit_code: int | None = Field(default=None, description="Of the main command, once it has ended.")
    last_activity_at: str
    network: dict[str, Any]
    message: str | None = Field(default=None, description="Why it failed or stopped. (Not in the reference.)")


class BoxesAnswer(Answer):
    boxes: list[BoxAnswer]
    next_page_token: str | None


class BoxMetricsAnswer(Answer):
    commands_executed_total: int
    exec_errors_total: int
    bytes_sent_total: int
    bytes_received_total: int
    cpu_percent: float | None = Field(description="Since the last look; 100 is one processor.")
    memory_bytes: int | None
    network_bytes_sent: int
    network_bytes_received: int
    network_tcp_connections: int | None
    network_tcp_errors: int | None
    boot_timing: dict[str, int] = Field(description="Of its last start.")


class MetricsAnswer(Answer):
    boxes_created_total: int
    boxes_failed_total: int
    boxes_stopped_total: int
    num_running_boxes: int
    total_commands_executed: int
    total_exec_errors: int


class SnapshotAnswer(Answer):
    id: str
    box_id: str
    name: str
    created_at: int = Field(description="Unix time.")
    guest_disk_bytes: int
    container_disk_bytes: int
    size_bytes: int
    parent_id: str | None = Field(description="The snapshot that it came from. (Not in the reference.)")


class SnapshotsAnswer(Answer):
    snapshots: list[SnapshotAnswer]


class VolumeAnswer(Answer):
    id: str
    name: str | None
    state: Literal["ready"]
    created_at: str
    updated_at: str
    size_bytes: int = Field(description="The most that it may hold. (Not in the reference.)")


class VolumesAnswer(Answer):
    volumes: list[VolumeAnswer]


class ImageListed(Answer):
    reference: str
    repository: str
    tag: str
    id: str
    cached_at: str
    size_bytes: int | None
    aliases: list[str] = Field(description="(Not in the reference; as what follows.)")
    digest: str
    source: str
    used_at: str


class ImagesAnswer(Answer):
    images: list[ImageListed]


class PulledAnswer(Answer):
    reference: str
    config_digest: str
    layer_count: int
    repository: str
    tag: str
    id: str
    cached_at: str
    digest: str
    size_bytes: int


class ImageAnswer(Answer):
    name: str
    tags: list[str]
    aliases: list[str]
    curated: bool = Field(description="Whether it is everybody's.")
    versions: list[dict[str, Any]]
    config: dict[str, Any] = Field(description="(Not in the reference; as what follows.)")
    layers: list[dict[str, Any]]
    source: str
    used_at: str


class PrunedAnswer(Answer):
    removed: list[str]
    freed_bytes: int


class ImageUsageAnswer(Answer):
    count: int
    limit: int
    known_bytes: int


class RegistryAnswer(Answer):
    id: str
    registry_host: str
    repository_prefix: str
    username: str
    created_at: str


class RegistriesAnswer(Answer):
    registries: list[RegistryAnswer]


class TunnelAnswer(Answer):
    uri: str
