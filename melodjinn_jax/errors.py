"""The one exception that stands for a user's mistake, and how a command shows it."""

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. Its text is one sentence: the file, field or flag, and what to do."""


def reports_user_errors(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command's `main`: a `UserError` becomes one line on standard error and exit status 2, Ctrl-C 130."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return wrapped
