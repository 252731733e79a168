"""Ctrl-C before a command works: within an import it could be lost, or leave modules half made that fail later."""

import os
import signal

hint = ""  # the line that an interrupt leaves before the work


def exit_at_once(*_: object) -> None:
    """A handler that runs nothing more."""
    if hint:
        os.write(2, f"\n{hint}\n".encode(errors="backslashreplace"))
    os._exit(130)


def prepare() -> None:
    """Until the work begins, let an interrupt end the process at once; one that is ignored stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, exit_at_once)


def work() -> None:
    """From here on an interrupt is a KeyboardInterrupt again, which lets files be closed and results be kept."""
    if signal.getsignal(signal.SIGINT) is exit_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
