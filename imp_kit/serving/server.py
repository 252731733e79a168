"""Start the server on this machine: check what was asked for, load, answer until Ctrl-C."""

import asyncio
import os
import re
import socket
from collections.abc import Callable

import uvicorn

from imp_kit.errors import SettingError
from imp_kit.imp import Imp
from imp_kit.serving.app import make_app
from imp_kit.serving.batching import Batcher
from imp_kit.system.loopback import is_loopback

GRACE_SECONDS = 5.0  # for what is being answered, once the server is to stop
SAFETY_SECONDS = 5  # after these, for what does not stop by itself


class Server(uvicorn.Server):
    """uvicorn's server, which first refuses what waits when it is to stop, and soon ends what is being answered."""

    def __init__(self, imp: Imp, *, batch_size: int = 8, queue: int = 64, key: str | None = None):
        self.batcher = Batcher(imp.engine, batch_size, queue)
        super().__init__(
            uvicorn.Config(
                make_app(imp, self.batcher, key),
                http="h11",
                ws="none",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(GRACE_SECONDS) + SAFETY_SECONDS,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.batcher.stop()
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self.batcher.abort)
        await super().shutdown(sockets)


def serve(
    load: Callable[[], Imp],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_env: str | None = None,
    batch_size: int = 8,
    queue: int = 64,
) -> None:
    """Answer at a host and port until Ctrl-C, which is raised as KeyboardInterrupt at the end; port 0 is a free one.

    What makes no sense is refused before `load` is called. `api_key_env` names the environment's variable that holds
    the key which clients have to send. Raises SettingError, and whatever `load` raises.
    """
    for name, value, least in (("batch-size", batch_size, 1), ("queue", queue, 0)):
        if value < least:
            raise SettingError(f"--{name} is {value}; give a whole number from {least}.")
    if not 0 <= port <= 65535:
        raise SettingError(f"--port is {port}; give a whole number from 0 to 65535.")
    key = None if api_key_env is None else os.environ.get(api_key_env, "")
    if key is not None and not (key and key.isascii() and key.isprintable() and key == key.strip()):
        # It may be the key itself by mistake, which is not repeated.
        name = repr(api_key_env) if re.fullmatch("[A-Z_]+", str(api_key_env)) else "that --api-key-env names"
        raise SettingError(f"The environment variable {name} holds no key; set it to letters and digits.")
    with _listen(host, port) as listening:
        imp = load()
        server = Server(imp, batch_size=batch_size, queue=queue, key=key)
        address, number = listening.getsockname()[:2]
        name = f"[{address}]" if ":" in address else address
        if key is None and not is_loopback(address):
            print("imp-kit: There is no key, so whoever reaches this machine can ask; --api-key-env sets one.")
        print(f"imp-kit: {imp.name} answers at http://{name}:{number}/v1 (Ctrl-C ends it)", flush=True)
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (socket.gaierror, UnicodeError):
        raise SettingError(f"There is no address of the name {host!r}; choose another --host.") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise SettingError(
            f"The server cannot listen at {host}:{port}: {reason}. Choose another --port, or an address of this "
            "machine as --host."
        ) from None
