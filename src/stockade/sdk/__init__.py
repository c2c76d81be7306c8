"""The client: creates sandboxes on a server, runs processes in them, moves files, reaches ports.

    from stockade.sdk import Client

    with Client("http://127.0.0.1:8080", api_key) as client:
        sandbox = client.create("host", ["sleep", "600"])
        with client.exec(sandbox.id, ["python3", "-c", "print(6 * 7)"]) as process:
            finished = process.collect()
        assert finished.stdout == b"42\\n"
        client.kill(sandbox.id)

It speaks the execbox protocol, so it also serves other servers that do, without our extensions: resuming a stream
where it broke, terminals, archives, `extend` and `stats`.
"""

from stockade.sdk._async_client import DEFAULT_URL, AsyncClient, AsyncDownload, Content
from stockade.sdk._client import Client, Download, Process
from stockade.sdk._frames import Chunk, Source
from stockade.sdk._process import AsyncProcess
from stockade.sdk.errors import (
    ApiError,
    BadRequest,
    Conflict,
    ConnectionFailed,
    ConnectionLost,
    LimitExceeded,
    NotFound,
    ProtocolError,
    SdkError,
    ServerError,
    StreamFailed,
    TimedOut,
    Unauthorized,
    UnsafeArchive,
)
from stockade.sdk.records import (
    ApiKey,
    Executor,
    FileEntry,
    Finished,
    Network,
    NewApiKey,
    Port,
    PortAddress,
    Sandbox,
    SandboxFile,
    Upload,
    Usage,
)

__all__ = [
    "DEFAULT_URL",
    "ApiError",
    "ApiKey",
    "AsyncClient",
    "AsyncDownload",
    "AsyncProcess",
    "BadRequest",
    "Chunk",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "ConnectionLost",
    "Content",
    "Download",
    "Executor",
    "FileEntry",
    "Finished",
    "LimitExceeded",
    "Network",
    "NewApiKey",
    "NotFound",
    "Port",
    "PortAddress",
    "Process",
    "ProtocolError",
    "Sandbox",
    "SandboxFile",
    "SdkError",
    "ServerError",
    "Source",
    "StreamFailed",
    "TimedOut",
    "Unauthorized",
    "UnsafeArchive",
    "Upload",
    "Usage",
]
