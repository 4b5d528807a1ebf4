"""Checks of the arguments of a judge that asks a server: each names what is wrong and what is accepted."""

import ipaddress
import math
import os
import re
from urllib.parse import urlsplit

OPENAI_URL = "https://api.openai.com/v1"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# keys without a dash look like names: capitals, small letters and digits, and long; few long names have no _
_KEY = re.compile(
    r"sk_.*|(?:pk|hf|gsk|xai|r8|ghp)_[A-Za-z0-9]{16,}|(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9]).{20,}"
    r"|(?=.*[a-z])(?=.*[A-Z0-9])[A-Za-z0-9]{20,}"
)


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


def variable_name(name: str, value: str) -> str:
    """The name of an environment variable; refused, and not repeated, where it is none or has the shape of a key."""
    if not _VARIABLE.fullmatch(filled(name, value)) or _KEY.fullmatch(value):
        raise ValueError(
            f"{name} is no name of an environment variable (the value is not shown, as it may be a key); accepted: "
            "letters, digits and _, such as OPENAI_API_KEY. The key itself belongs in that variable"
        )
    return value


def key_in(variable: str, url: str | None) -> str | None:
    """The API key that an environment variable holds; None for a server of one's own that needs none.

    Args:
        variable: Its name.
        url: Of the server that the key is for; None for OpenAI's.

    Raises:
        ValueError: If the key is needed and not set, is none that can be sent, or could be read on the way.
    """
    key = os.environ.get(variable, "").strip()
    if not key and url is None:
        raise ValueError(
            f"the environment variable {variable} is not set; it must hold a key for {OPENAI_URL}, or give base_url, a "
            "server of your own"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"what {variable} holds is no key: it has spaces or characters beyond ASCII")
    if key and url is not None and not is_private(url):
        raise ValueError(
            f"{url} is not encrypted: the key in {variable} could be read on the way; give an https address, or, where "
            "the server needs no key, an api_key_env that is not set, such as NONE"
        )
    return key or None


def is_openai(url: str) -> bool:
    """Whether an address is one of OpenAI's own, a region's among them."""
    return f".{urlsplit(url).hostname}".endswith(".api.openai.com")


def is_private(url: str) -> bool:
    """Whether nobody on the way can read what is sent: it is encrypted, or does not leave the machine."""
    return urlsplit(url).scheme == "https" or is_here(url)


def is_here(url: str) -> bool:
    """Whether an address is this machine's own."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
