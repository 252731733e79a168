"""The errors that the kit raises on purpose: one parent, and a child for each kind of bad input."""


class ImpKitError(Exception):
    """Parent of every error that the kit raises on purpose."""

    def __init__(self, message: str):
        # The name of a file may hold bytes that are no UTF-8, which a notebook or a record could not show.
        super().__init__(message.encode("utf-8", "backslashreplace").decode())

    def bare(self) -> "ImpKitError":
        """This error without its traceback, whose frames would keep a batch's memory as long as the error is kept."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class CheckpointError(ImpKitError):
    """A checkpoint cannot be found, cannot be read, or does not fit the architecture."""


class ImageError(ImpKitError):
    """An image cannot be opened, or is not one."""


class ImageSizeError(ImageError):
    """An image has more pixels than are read."""


class PromptError(ImpKitError):
    """A question cannot be asked: it is empty, too long, or holds a control token."""


class PromptLengthError(PromptError):
    """A prompt has more tokens than the checkpoint reads."""


class SettingError(ImpKitError):
    """A device, dtype or generation setting makes no sense or is not there."""


class RunError(ImpKitError):
    """An experiment's run cannot begin, go on, or be read."""


class EndpointError(ImpKitError):
    """An endpoint cannot be asked: it is not there, refuses the key or the model, or speaks something else."""


class ReplyError(EndpointError):
    """One request to an endpoint gave no answer; others may."""


class MemoryLimitError(ImpKitError):
    """A checkpoint needs more memory than is free."""


class Stopped(KeyboardInterrupt):
    """A run that was interrupted, as by Ctrl-C: what is kept, and the command that goes on where there is one."""

    def __init__(self, kept: str, command: str | None = None):
        super().__init__(f"imp-kit: stopped; {kept}. To go on: {command or 'run the same again'}")
