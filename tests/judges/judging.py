"""Fixtures that the tests of the model judge share: a scripted server, judges that ask it, and a clock."""

import asyncio

import pytest
from server import Server, verdicts

from gradsteer.judges import Exchange, completions
from gradsteer.judges.openai import OpenAIJudge

KEY = "sk-proj-Abcd1234Efgh5678Ijkl9012MnopWxYz"
RUBRICS = {"bridge": None, "recipe": None}
YES = verdicts(bridge=True, recipe=False)


def exchanges(count):
    return [Exchange(f"question {number}", f"answer {number}") for number in range(count)]


@pytest.fixture(name="environment", autouse=True)
def environment_fixture(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(name="play")
def play_fixture():
    """Starts a server with a script."""
    servers = []

    def start(*script):
        servers.append(Server(script[0] if len(script) == 1 and getattr(script[0], "is_script", False) else script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(name="judging")
def judging_fixture():
    """Makes judges; by default without a store, of two built-in behaviors."""
    judges = []

    def make(server=None, rubrics=RUBRICS, **options):
        options = {"store": None, "base_url": server and server.url, **options}
        judges.append(OpenAIJudge(rubrics, **options))
        return judges[-1]

    yield make
    for judge in judges:
        judge.close()


@pytest.fixture(name="waits")
def waits_fixture(monkeypatch):
    """The seconds that the judge would have waited, in order; nobody waits for them."""
    seconds = []

    async def pause(asked):
        seconds.append(asked)
        await asyncio.sleep(0)

    monkeypatch.setattr(completions, "pause", pause)
    return seconds


def script(function):
    """Marks a function from a request to an answer."""
    function.is_script = True
    return function
