"""What the server answers, and how it refuses: every limit in words, never a failure of its own for a wrong request."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from tiny_checkpoint import COUNT, tiny_checkpoint, tiny_graph

from imf_core.answers import Answer, Question
from imf_core.commands.serve.request import Limits
from imf_core.commands.serve.serve import allowed_hosts
from imf_core.commands.serve.service import build_app
from imf_core.errors import ConfigError
from imf_core.predict import Predictor

ODD = "\udcff\udcfe[b]"  # bytes that are no UTF-8
JSON = {"content-type": "application/json"}
LIMITS = Limits(questions=4, body=2_000, k=20, names=10)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("service")
    graph = tiny_graph(folder / "graph", first=[b"\xff\xfe[b]", "Zoë & co?".encode()])
    return Predictor.load(tiny_checkpoint(graph, folder / "best", metrics={"validation": {"mrr": 0.25, "mean_rank": math.nan}}))


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    app = build_app(predictor, LIMITS, allowed_hosts("127.0.0.1", []))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False, headers=JSON) as client:
        yield client


def ask(client: TestClient, body: Any) -> tuple[int, dict[str, Any]]:
    response = client.post("/predict", content=body if isinstance(body, (bytes, str)) else json.dumps(body))
    return response.status_code, response.json()


def question(head: Any = None, relation: Any = "next", tail: Any = None) -> dict[str, Any]:
    return {"head": head, "relation": relation, "tail": tail}


def as_json(predictor: Predictor, questions: list[Question], k: int) -> list[list[dict[str, Any]]]:
    answers = [[vars(answer) for answer in found] for found in predictor.answers(questions, k)]
    plain: list[list[dict[str, Any]]] = json.loads(json.dumps(answers))
    return plain


# --- answers ------------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_predictor(client: TestClient, predictor: Predictor) -> None:
    asked = [question("e3"), question(relation="[rest]", tail="e2"), question(ODD), question("Zoë & co?")]
    status, found = ask(client, {"questions": asked, "k": 5})
    assert status == 200
    wanted = as_json(predictor, [Question(**entry) for entry in asked], 5)
    assert [result["answers"] for result in found["results"]] == wanted
    assert [{key: result[key] for key in ("head", "relation", "tail")} for result in found["results"]] == asked
    assert set(found["results"][0]["answers"][0]) == {"entity", "score", "branch_scores", "weights", "known"}
    assert all(len(result["answers"]) == 5 for result in found["results"])


def test_what_is_left_out_has_a_default(client: TestClient) -> None:
    status, found = ask(client, {"questions": [{"head": "e3", "relation": "next"}]})
    assert status == 200 and len(found["results"][0]["answers"]) == 10
    assert ask(client, {"questions": []}) == (200, {"results": []})


def test_a_large_k_gives_every_entity_once(predictor: Predictor) -> None:
    with TestClient(build_app(predictor, Limits(), ["*"]), headers=JSON) as client:
        status, found = ask(client, {"questions": [question("e3")], "k": 1000, "known": "mark"})
    assert status == 200
    assert sorted(answer["entity"] for answer in found["results"][0]["answers"]) == sorted(predictor.checkpoint.entities.names)


def test_names_leave_as_ascii(client: TestClient) -> None:
    response = client.post("/predict", content=json.dumps({"questions": [question(ODD)], "k": 20}))
    assert response.content.isascii() and response.headers["content-type"] == "application/json"


def test_health_and_about(client: TestClient, predictor: Predictor) -> None:
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}
    about = client.get("/about").json()
    assert (about["entities"], about["relations"], about["parameters"]) == (COUNT, 2, predictor.checkpoint.model.num_parameters)
    assert about["branches"] == ["structure", "text", "sound", "fused"] and about["checkpoint"] == "best"
    assert about["figures"] == {"validation": {"mrr": 0.25, "mean_rank": None}}  # JSON has no NaN
    assert about["limits"] == {"questions": 4, "k": 20, "body_bytes": 2_000, "names": 10}


def test_listings_are_bounded_and_ordered(client: TestClient) -> None:
    names = sorted([ODD, "Zoë & co?", *(f"e{i}" for i in range(2, COUNT))])
    assert client.get("/entities").json() == {"entities": names[:10], "total": COUNT}
    assert client.get("/entities?prefix=e1").json() == {"entities": [f"e{i}" for i in range(10, 20)], "total": 10}
    assert client.get("/entities?prefix=e2&limit=2").json() == {"entities": ["e2", "e20"], "total": 5}
    assert client.get("/entities?prefix=%FF").json() == {"entities": [ODD], "total": 1}
    assert client.get("/entities", params={"prefix": "Zoë &"}).json() == {"entities": ["Zoë & co?"], "total": 1}
    assert client.get("/entities?prefix=nothing").json() == {"entities": [], "total": 0}
    assert client.get("/relations").json() == {"relations": ["[rest]", "next"], "total": 2}
    assert client.get("/relations?prefix=n").json() == {"relations": ["next"], "total": 1}


@pytest.mark.parametrize("limit", ["0", "11", "-1", "x", "1.5", "", "9" * 5000, "٣"])
@pytest.mark.parametrize("kind", ["entities", "relations"])
def test_a_wrong_limit_is_refused_in_words(client: TestClient, kind: str, limit: str) -> None:
    response = client.get(f"/{kind}", params={"limit": limit})
    assert response.status_code == 422
    assert "ask for 1 to 10 names" in response.json()["what_to_do"]


def test_the_interface_describes_itself(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/predict", "/health", "/about", "/entities", "/relations"}
    assert "questions" in json.dumps(paths["/predict"]["post"]["requestBody"])
    assert client.get("/docs").status_code == 404  # it would load scripts from elsewhere


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"questions": [question("e3")] * 5}, 422, ["5 questions in one request", "at most 4", "--max-batch"]),
        ({"questions": [], "k": 21}, 422, ["k is 21", "1 to 20 answers"]),
        ({"questions": [], "k": 0}, 422, ["k is 0", "1 to 20 answers"]),
        ({"questions": [], "k": -5}, 422, ["k is -5"]),
        ({"questions": [], "k": True}, 422, ["k is true or false"]),
        ({"questions": [], "k": 2.0}, 422, ["k is a decimal number"]),
        ({"questions": [], "k": "5"}, 422, ["k is a text"]),
        ({"questions": [], "k": None}, 422, ["k is null"]),
        ({"questions": [], "known": "dorp"}, 422, ["known is 'dorp'", "did you mean 'drop'", "mark"]),
        ({"questions": [], "known": None}, 422, ["known is null", "drop, mark, only"]),
        ('{"questions": [], "k": NaN}', 422, ["k is a decimal number"]),
        ('{"questions": [], "k": 1e999}', 422, ["k is a decimal number"]),
        ('{"questions": [], "k": ' + "9" * 1000 + "}", 422, ["k is a very large number"]),
        ({"questions": [question("e99")]}, 422, ["questions[0]: 'e99' is no entity", "did you mean 'e9'"]),
        ({"questions": [question("e3"), question("e3", "nxt")]}, 422, ["questions[1]: 'nxt' is no relation", "'next'"]),
        ({"questions": [question("\ud800")]}, 422, ["questions[0]: '\\ud800' is no entity"]),
        ({"questions": [question("e3", tail="e4")]}, 422, ["questions[0]", "leaves not exactly one end open"]),
        ({"questions": [question()]}, 422, ["questions[0]", "leaves not exactly one end open"]),
        ({"questions": [question(3)]}, 422, ["questions[0].head is a whole number", "a name, or null"]),
        ({"questions": [question("e3", None)]}, 422, ["questions[0].relation is null", "give a name"]),
        ({"questions": [{"head": "e3"}]}, 422, ["questions[0].relation is null"]),
        ({"questions": [{"head": ["e3"], "relation": "next"}]}, 422, ["questions[0].head is a list"]),
        ({"questions": [{**question("e3"), "hed": "x"}]}, 422, ["questions[0] has the unknown key 'hed'", "'head'"]),
        ({"questions": ["e3"]}, 422, ["questions[0] is a text, not an object"]),
        ({"questions": {"head": "e3"}}, 422, ["questions is an object, not a list"]),
        ({}, 422, ["questions is null, not a list", "write {"]),
        ({"question": []}, 422, ["unknown key 'question'", "did you mean 'questions'"]),
        ({"\ud800": []}, 422, ["unknown key '\\ud800'"]),
        ([], 422, ["the body is a list, not an object"]),
        ("null", 422, ["the body is null, not an object"]),
        ("", 400, ["the body is no JSON", "write {"]),
        ('{"questions": [}', 400, ["the body is no JSON"]),
        (b"\xff\xfe\x00", 400, ["the body is no JSON"]),
        (b'{"questions": [{"head": "\xff", "relation": "next"}]}', 400, ["the body is no JSON"]),
        ("[" * 1900, 400, ["the body is no JSON"]),
        ('{"a":' * 380, 400, ["the body is no JSON"]),
    ],
)
def test_a_wrong_request_is_refused_in_words(client: TestClient, body: Any, status: int, words: list[str]) -> None:
    found, answer = ask(client, body)
    assert found == status, answer
    said = answer["error"] + " " + answer["what_to_do"]
    assert [word for word in words if word not in said] == []
    assert answer["what_to_do"]


def test_deep_nesting_beyond_what_python_reads(predictor: Predictor) -> None:
    with TestClient(build_app(predictor, Limits(), ["*"]), raise_server_exceptions=False, headers=JSON) as client:
        status, answer = ask(client, "[" * 200_000)
        assert (status, "recursion" in answer["error"]) == (400, True)
        status, answer = ask(client, '{"questions": [], "k": ' + "9" * 100_000 + "}")
        assert (status, "the body is no JSON" in answer["error"]) == (400, True)


@pytest.mark.parametrize("told", [True, False])
def test_a_long_body_is_refused(client: TestClient, told: bool) -> None:
    """Whether its length is told beforehand, or it comes in pieces."""
    exact = json.dumps({"questions": [question("e3")]}).ljust(2_000).encode()
    pieces = [exact[:1000], exact[1000:]]
    assert client.post("/predict", content=exact if told else iter(pieces)).status_code == 200
    response = client.post("/predict", content=exact + b" " if told else iter([*pieces, b" "]))
    assert response.status_code == 413
    assert "longer than 2,000 bytes" in response.json()["error"] and "--max-body-kib" in response.json()["what_to_do"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/predict", 405), ("POST", "/health", 405), ("GET", "/", 404), ("GET", "/predict/", 404), ("GET", "/docs", 404),
     ("POST", "/entities", 405), ("GET", "/%FF%00", 404)],
)
def test_what_is_not_there(client: TestClient, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert "POST /predict" in response.json()["what_to_do"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "0.0.0.0", "", "[::2]", "a b"])
def test_another_host_name_is_refused(client: TestClient, host: str) -> None:
    """A page whose name was made to point at this machine cannot ask."""
    assert client.get("/health", headers={"host": host}).status_code == 400
    assert client.post("/predict", content="{}", headers={"host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_names_of_this_machine_are_taken(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"host": host}).status_code == 200


def test_hosts_that_are_given(predictor: Predictor) -> None:
    assert allowed_hosts("127.0.0.1", []) == ["localhost", "127.0.0.1", "[::1]"]
    assert allowed_hosts("fe80::1", ["a.example"])[3:] == ["[fe80::1]", "a.example"]
    with TestClient(build_app(predictor, LIMITS, allowed_hosts("10.0.0.1", ["*.a.example"]))) as client:
        asked = "10.0.0.1:80", "x.a.example", "b"
        answers = {host: client.get("/health", headers={"host": host}).status_code for host in asked}
    assert answers == {"10.0.0.1:80": 200, "x.a.example": 200, "b": 400}
    for wrong in ("a*", "*.*", "**"):
        with pytest.raises(ConfigError, match="is no name"):
            allowed_hosts("127.0.0.1", [wrong])


# --- one model, many requests -------------------------------------------------------------------------------------------


def test_what_waits_is_answered_together(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that come while another is answered wait, in one thread; `/health` does not. Then one call answers them all, as
    `Predictor` answers each alone; a wrong name spoils its own request only, another k is another call.
    """
    started, go, threads, calls = threading.Event(), threading.Event(), set(), []
    real = predictor.answers

    def slow(questions: Any, k: int, known: str) -> Any:
        threads.add(threading.get_ident())
        calls.append((len(questions), k))
        started.set()
        assert go.wait(60)
        return real(questions, k, known)

    ends = [question("e3"), question(tail="e5"), question("e7", "[rest]"), question(relation="[rest]", tail="e2")]
    bodies = [{"questions": [ends[(i + j) % 4] for j in range(1 + i % 3)], "k": 5} for i in range(12)]
    bodies += [{"questions": [question("e3")], "k": 3}, {"questions": [question("e3"), question("nobody")], "k": 5}]
    found: dict[int, tuple[int, dict[str, Any]]] = {}
    with monkeypatch.context() as patch, TestClient(build_app(predictor, LIMITS, ["*"]), headers=JSON) as client:
        patch.setattr(predictor, "answers", slow)

        def client_of(number: int) -> threading.Thread:
            thread = threading.Thread(target=lambda: found.update({number: ask(client, bodies[number])}))
            thread.start()
            return thread

        others = [client_of(0)]
        assert started.wait(60)
        others += [client_of(number) for number in range(1, len(bodies))]
        while client.get("/health").json()["waiting"] < len(bodies):
            pass
        assert calls == [(1, 5)] and found == {}
        go.set()
        for thread in others:
            thread.join(60)
        assert client.get("/health").json()["waiting"] == 0
    assert len(threads) == 1
    assert sorted(calls) == [(1, 3), (1, 5), (sum(len(body["questions"]) for body in bodies[1:12]), 5)]
    status, refused = found.pop(13)
    assert status == 422 and "questions[1]: 'nobody' is no entity" in refused["error"]
    for number, (status, answer) in found.items():
        assert status == 200
        for asked, result in zip(bodies[number]["questions"], answer["results"], strict=True):
            (wanted,) = as_json(predictor, [Question(**asked)], bodies[number]["k"])
            assert {key: result[key] for key in asked} == asked
            assert [own["entity"] for own in result["answers"]] == [one["entity"] for one in wanted]
            assert result["left_out"] == predictor.num_known([Question(**asked)])[0]
            for own, one in zip(result["answers"], wanted, strict=True):
                assert own["score"] == pytest.approx(one["score"], abs=1e-6)
                assert own["branch_scores"] == pytest.approx(one["branch_scores"], abs=1e-6)
                assert own["weights"] == pytest.approx(one["weights"], abs=1e-6)


def test_a_batch_is_no_larger_than_a_block_of_the_model(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the first of many that wait need not wait for all."""
    started, go, calls = threading.Event(), threading.Event(), []
    real = predictor.answers

    def slow(questions: Any, k: int, known: str) -> Any:
        calls.append(len(questions))
        started.set()
        assert go.wait(60)
        return real(questions, k, known)

    monkeypatch.setattr(predictor, "answers", slow)
    body = {"questions": [question("e3")] * 100}
    with TestClient(build_app(predictor, Limits(), ["*"]), headers=JSON) as client:
        statuses: list[int] = []
        others = [threading.Thread(target=lambda: statuses.append(ask(client, body)[0])) for _ in range(6)]
        for thread in others:
            thread.start()
        assert started.wait(60)
        while client.get("/health").json()["waiting"] < 6:
            pass
        go.set()
        for thread in others:
            thread.join(60)
    assert statuses == [200] * 6
    assert sorted(calls) == [100, 100, 200, 200] or sorted(calls) == [200, 200, 200]


def test_a_score_that_is_no_number_is_null(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Answer("e3", math.nan, {"fused": math.inf}, {"fused": 1.0})
    monkeypatch.setattr(predictor, "answers", lambda questions, k, known: iter([[broken]]))
    with TestClient(build_app(predictor, LIMITS, ["*"]), headers=JSON) as client:
        status, found = ask(client, {"questions": [question("e3")]})
    assert status == 200
    assert found["results"][0]["answers"] == [{"entity": "e3", "score": None, "branch_scores": {"fused": None},
                                               "weights": {"fused": 1.0}, "known": False}]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_what_a_form_of_another_site_can_send_is_refused(client: TestClient, kind: str) -> None:
    body = json.dumps({"questions": [question("e3")]})
    response = client.post("/predict", content=body, headers={"content-type": kind})
    assert response.status_code == 415 and "Content-Type: application/json" in response.json()["what_to_do"]
    assert client.post("/predict", content=body, headers={"content-type": "application/json; charset=utf-8"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200), ("http://localhost", 200), ("https://elsewhere.example", 403), ("null", 403),
        ("http://localhost.elsewhere.example", 403),
    ],
)
def test_a_page_of_another_site_is_refused(client: TestClient, origin: str, status: int) -> None:
    body = json.dumps({"questions": [question("e3")]})
    assert client.post("/predict", content=body, headers={"origin": origin}).status_code == status
