"""Checks of the arguments of a judge that asks a server: each names what is wrong and what is accepted."""

import math
from urllib.parse import urlsplit


def filled(name: str, value: str) -> str:
    """The value, refused where it is blank."""
    if not value.strip():
        raise ValueError(f"{name} is {value!r}; it must not be empty")
    return value


def at_least(name: str, value: float, least: float) -> float:
    """The value, refused where it is below the least or not finite."""
    if not math.isfinite(value) or value < least:
        raise ValueError(f"{name} is {value}; it must be a finite number of at least {least}")
    return value


def server_address(url: str) -> str:
    """The address in one spelling; refused where it holds a secret or is none."""
    parts = urlsplit(url.strip())
    if parts.username or parts.password or parts.query or parts.fragment:
        # the address is stored and shown; the message does not repeat what may be a secret
        raise ValueError(
            "base_url holds a user name, a password or a query; accepted: an address without any, such as "
            "http://localhost:8000/v1, and the key in the environment variable that api_key_env names"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url is {url!r}; accepted: an address such as http://localhost:8000/v1")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"
