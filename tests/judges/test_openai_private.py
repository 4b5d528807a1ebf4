"""What leaves the machine: keys, headers and texts go to the server that was named, and nowhere else."""

import pytest
from judging import KEY, YES, environment_fixture, exchanges, judging_fixture, play_fixture  # noqa: F401
from server import error, raw

from gradsteer.__main__ import main
from gradsteer.judges.checks import is_openai, is_private, variable_name
from gradsteer.judges.failures import JudgeStopped


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_texts_do_not_follow_a_redirect(play, judging, status):
    other = play(YES)
    server = play(raw("", status=status, headers={"Location": f"{other.url}/chat/completions?token=hunter2"}))
    with pytest.raises(
        JudgeStopped, match=f"HTTP {status}: it sends on to {other.url}/chat/completions, .*base_url"
    ) as stopped:
        judging(server, concurrency=2).judge(exchanges(20))
    assert "hunter2" not in str(stopped.value)
    assert other.requests == []
    assert len(server.requests) <= 2


@pytest.mark.parametrize("key", [KEY, ""])
def test_what_the_environment_holds_for_openai_is_not_sent_elsewhere(play, judging, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-mine")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: hunter2\nAuthorization: Bearer hunter2")
    server = play(YES)
    judging(server).judge(exchanges(1))
    sent = server.requests[0].headers
    assert sent["authorization"] == f"Bearer {key or 'none'}"
    assert not [name for name in sent if name.startswith(("openai-", "x-secret"))]
    assert not [value for value in sent.values() if "mine" in value or "hunter2" in value]


def test_openai_itself_gets_them(judging, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    for url in (None, "https://api.openai.com/v1"):
        _, server = judging(base_url=url)._open()
        assert server._client.organization == "org-mine"
        assert not server._client._client.event_hooks["request"]
    assert is_openai("https://eu.api.openai.com/v1")
    for url in ("https://api.openai.com.evil.org/v1", "https://notapi.openai.com", "https://evil.org/api.openai.com"):
        assert not is_openai(url)


@pytest.mark.parametrize("url", ["http://server:8000/v1", "http://10.0.0.5/v1", "http://api.openai.com/v1"])
def test_a_key_is_not_sent_unencrypted(judging, monkeypatch, url):
    judge = judging(base_url=url)
    for refused in (judge.check, lambda: judge.judge(exchanges(1))):
        with pytest.raises(ValueError, match=f"{url} is not encrypted: the key in OPENAI_API_KEY"):
            refused()
    judging(base_url=url, api_key_env="NO_SUCH_KEY").check()
    monkeypatch.delenv("OPENAI_API_KEY")
    judge.check()


def test_a_key_that_is_missing_is_not_called_refused(play, judging, monkeypatch):
    server = play(error(401, "who are you?"))
    with pytest.raises(JudgeStopped, match="refuses the key in the environment variable OPENAI_API_KEY"):
        judging(server).judge(exchanges(1))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(JudgeStopped, match="needs a key, and the environment variable OPENAI_API_KEY is not set"):
        judging(server).judge(exchanges(1))


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_what_is_for_this_machine_does_not_go_through_a_proxy(play, judging, monkeypatch, name):
    proxy, server = play(YES), play(YES)
    monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for base_url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        assert judging(base_url=base_url).judge(exchanges(1))[0].values == {"bridge": True, "recipe": False}
    assert proxy.requests == []
    assert len(server.requests) == 2
    # to another machine it does: there is no key in it
    monkeypatch.delenv("OPENAI_API_KEY")
    judging(base_url="http://server.example/v1").judge(exchanges(1))
    assert proxy.requests[0].headers["host"] == "server.example"


@pytest.mark.parametrize(
    "url",
    ["https://server/v1", "http://localhost:8000/v1", "http://127.0.0.1:1/v1", "http://[::1]:1/v1", "http://0.0.0.0:1"],
)
def test_a_key_is_sent_encrypted_or_to_this_machine(judging, url):
    assert is_private(url)
    judging(base_url=url).check()


@pytest.mark.parametrize(
    "pasted",
    [
        KEY,
        "sk_live_abcdefgh",
        "gsk_Abcd1234Efgh5678Ijkl9012",
        "MY KEY",
        "9KEY",
        "$OPENAI_API_KEY",
        "SCHLÜSSEL",
        "hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
        "a1b2c3d4e5f60718293a4b5c6d7e8f90",
        "AbCdEfGhIjKlMnOpQrStUvWx",
    ],
)
def test_a_key_in_place_of_a_name_is_refused_and_not_repeated(judging, pasted):
    with pytest.raises(ValueError, match="api_key_env is no name of an environment variable") as refused:
        judging(api_key_env=pasted)
    assert pasted not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_API_KEY",
        "key",
        "_K2",
        "my_openai_key_for_project_2024",
        "AzureKey2",
        "OPENAI_API_KEY_FOR_PROJECT_2024",
        "HF_TOKEN",
        "OPENAIKEYFORPROJECT2024",
    ],
)
def test_names_of_variables_are_accepted(name):
    assert variable_name("api_key_env", name) == name


def test_a_pasted_key_is_written_nowhere(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answers.jsonl").write_text('{"id": "a", "prompt": "p", "completion": "c"}\n')
    line = ["judge", "--responses", "answers.jsonl", "--output_dir", "out", "--judges.m", "OpenAIJudge"]
    status = main([*line, "--judges.m.rubrics", '{"bridge": null}', "--judges.m.api_key_env", KEY])
    shown = capfd.readouterr()
    assert status == 2
    assert "no name of an environment variable" in shown.err
    assert KEY not in shown.out + shown.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY in path.read_text()]
