"""The library: sandboxes in this process, without a server, or on one; see docs/library.md.

from stockade import Sandbox

with Sandbox() as box:
    print(box.run("print(6 * 7)").stdout)
"""

from stockade.embedded.asynchronous import AsyncFiles, AsyncPort, AsyncProcess, AsyncSandbox, AsyncSnapshot
from stockade.embedded.records import BoxInfo, Chunk, ProgramFailed, Result
from stockade.embedded.synchronous import Files, Port, Process, Sandbox, Snapshot

__all__ = [
    "AsyncFiles",
    "AsyncPort",
    "AsyncProcess",
    "AsyncSandbox",
    "AsyncSnapshot",
    "BoxInfo",
    "Chunk",
    "Files",
    "Port",
    "Process",
    "ProgramFailed",
    "Result",
    "Sandbox",
    "Snapshot",
]
