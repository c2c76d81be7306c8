"""What a user is told when we refuse or fail."""

import sys

from stockade.errors import CannotEnforce, StockadeError

__all__ = ["complain"]


def complain(error: StockadeError) -> None:
    """Say on standard error what was wrong and, where one line does it, what to do."""
    print(f"stockade: {error}", file=sys.stderr)
    if isinstance(error, CannotEnforce):
        names = ",".join(error.features)
        print(f"to go without:  export STOCKADE_SANDBOX_ALLOW_UNENFORCED={names}", file=sys.stderr)
