"""By which names a browser or a program calls a server on its own machine."""

import ipaddress


def names_this_machine(host: str) -> bool:
    """Whether a header Host has "localhost" or an IP number, which no web page can make its own name.

    A page elsewhere can let its own name lead to 127.0.0.1 (DNS rebinding), and the browser then takes both for one.
    """
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
