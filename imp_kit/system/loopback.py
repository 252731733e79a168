"""Addresses and names of this machine, as servers and their clients use them."""

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


def is_loopback(host: str) -> bool:
    """Whether what goes to a host stays on this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
