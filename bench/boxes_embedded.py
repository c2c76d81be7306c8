"""The library in a program of its own: what `Sandbox()` and a first exec take there.

python -m bench.boxes_embedded       # prints seconds: of the first, then one for each line that it reads
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.measure import BenchError, Sample
from bench.programs import TRUE

__all__ = ["embedded"]

END_S = 30.0


@contextlib.contextmanager
def embedded(directory: Path) -> Iterator[tuple[float, Sample]]:
    """Such a program: what its first sandbox took, from before `import stockade` on; and what each further one takes.

    Raises:
        BenchError: it could not make one.
    """
    log_path = directory / "embedded.log"
    command = [sys.executable, "-m", "bench.boxes_embedded"]
    with (
        log_path.open("wb") as log,
        subprocess.Popen(
            command,
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def told() -> float:
            line = stdout.readline()
            if not line:
                raise BenchError(f"the library ended:\n{log_path.read_text(errors='replace')[-2000:]}")
            return float(line)

        def sample() -> float:
            stdin.write("\n")
            stdin.flush()
            return told()

        try:
            yield told(), sample
        finally:
            stdin.close()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _serve() -> None:
    """Be that program."""
    began = time.perf_counter()
    from stockade import Sandbox  # on the clock of the first

    def life(began: float) -> None:
        box = Sandbox()
        code = box.exec(TRUE).wait()
        seconds = time.perf_counter() - began
        box.close()
        if code:
            raise SystemExit(f"true ended with {code}")
        print(seconds, flush=True)

    life(began)
    for _ in sys.stdin:
        life(time.perf_counter())


if __name__ == "__main__":
    _serve()
