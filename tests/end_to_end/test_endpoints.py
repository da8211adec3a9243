"""`deltarank endpoints` against servers that answer from known distributions, with the faults and lies of hosts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands import Finished, RunCommand
from deltarank.results import EndpointResults
from fake_endpoint import FakeEndpoint, Fault, Handler, TinyModel, serving, stream_forever

FINETUNE = TinyModel(change=0.4)
KEY = "sk-secret-0123456789abcdef"

Compare = Callable[..., Finished]


@pytest.fixture
def compare(command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(a: FakeEndpoint | str, b: FakeEndpoint | str, *words: object) -> Finished:
        refs = [each if isinstance(each, str) else each.reference for each in (a, b)]
        return command("endpoints", *refs, "-o", tmp_path / "run", "--seed", 5, "--alpha", 0.05, "--no-report", *words)

    return run


def found(tmp_path: Path) -> EndpointResults:
    return EndpointResults.load(tmp_path / "run")


def kind(tmp_path: Path) -> str:
    return found(tmp_path).verdict.kind.value


def headline(tmp_path: Path) -> str:
    return found(tmp_path).verdict.sentences[0]


def test_equal_weights_on_other_kernels_are_the_same(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(rounding=0.01), FakeEndpoint(rounding=0.01)) as (a, b):
        done = compare(a, b, "--check")

    (test,) = found(tmp_path).endpoints.tests
    assert done.code == 0
    assert kind(tmp_path) == "same"
    assert "predict alike: less than 0.002 nats per token apart" in " ".join(done.out.split())
    assert test.name.value == "first_token_logprobs"
    assert 0 < test.statistic < 5e-4
    assert max(test.control_aa, test.control_bb) < 1e-15  # 0 but for the rounding of a logarithm


def test_tokens_without_a_text_of_their_own_make_no_difference(compare: Compare, tmp_path: Path) -> None:
    """vLLM lists parts of a character as empty texts, llama.cpp special tokens."""
    with serving(FakeEndpoint(nameless=range(6)), FakeEndpoint(nameless=range(6, 12))) as (a, b):
        compare(a, b)

    assert kind(tmp_path) == "same", headline(tmp_path)


def test_a_finetune_is_different_and_the_distance_is_a_lower_bound(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(), FakeEndpoint(model=FINETUNE)) as (a, b):
        done = compare(a, b, "--check")

    (test,) = found(tmp_path).endpoints.tests
    truth = TinyModel().kld(FINETUNE, 300)
    assert done.code == 3
    assert kind(tmp_path) == "different"
    assert test.e_value >= 20
    assert test.p <= 0.05
    assert 0.3 * truth < test.statistic < 1.5 * truth
    assert test.n <= 10


@pytest.mark.parametrize("method", ["echoes", "prompt_logprobs"])
def test_log_probabilities_of_the_prompt_are_used_where_both_give_them(
    compare: Compare, tmp_path: Path, method: str
) -> None:
    with serving(FakeEndpoint(**{method: True}), FakeEndpoint(model=FINETUNE, **{method: True})) as (a, b):
        compare(a, b)

    (test,) = found(tmp_path).endpoints.tests
    assert test.name.value == "prompt_logprobs"
    assert kind(tmp_path) == "different"


def test_lists_at_the_tokens_of_the_prompt_are_as_long_as_at_the_first_token(compare: Compare, tmp_path: Path) -> None:
    """Five of these tokens have less than half of the probability, of which nothing could be said."""
    flat = TinyModel(sharpness=1.2)
    with serving(*(FakeEndpoint(model=flat, prompt_logprobs=True) for _ in range(2))) as (a, b):
        compare(a, b)

    (test,) = found(tmp_path).endpoints.tests
    assert test.name.value == "prompt_logprobs"
    assert kind(tmp_path) == "same", headline(tmp_path)


@pytest.mark.parametrize("form", ["prompt_logprobs", "echoes"])
def test_log_probabilities_of_the_prompt_are_asked_for_one_request_at_a_time(
    compare: Compare, tmp_path: Path, form: str
) -> None:
    """vLLM on a processor, with LoRA enabled, ends when it runs such a request together with another."""
    together = []

    def slow(handler: Handler, body: dict[str, Any]) -> bool:
        asks = bool(body.get("echo") or body.get("prompt_logprobs"))
        if asks:
            time.sleep(0.02)
        together.append(asks and any(each.at_once > 1 for each in (a, b)))
        return False

    a, b = (FakeEndpoint(fault=slow, **{form: True}) for _ in range(2))
    with serving(a, b):
        compare(a, b)

    assert found(tmp_path).endpoints.tests[0].name.value == "prompt_logprobs"
    assert not any(together)


def test_noise_that_comes_and_goes_with_the_answers_is_no_difference(compare: Compare, tmp_path: Path) -> None:
    """Jitter of 0.2 in the logits: farther apart than the tolerance, and each endpoint is as far from itself."""
    with serving(FakeEndpoint(jitter=0.2), FakeEndpoint(jitter=0.2)) as (a, b):
        compare(a, b, "--max-requests", 150)

    (test,) = found(tmp_path).endpoints.tests
    assert kind(tmp_path) == "undecided"
    assert test.statistic > test.tolerance
    assert test.control_aa == pytest.approx(test.control_bb, rel=0.5)
    assert "may serve several variants" in " ".join(found(tmp_path).verdict.sentences)


def test_greedy_tokens_find_a_finetune_where_there_are_no_log_probabilities(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(top_logprobs=0), FakeEndpoint(top_logprobs=0, model=TinyModel(change=1.0))) as (a, b):
        done = compare(a, b)

    assert kind(tmp_path) == "different"
    assert "of their greedy first tokens differ" in headline(tmp_path)
    assert "each endpoint lists no log-probabilities" in " ".join(done.out.split())


def test_greedy_tokens_never_show_that_two_endpoints_are_the_same(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(top_logprobs=0), FakeEndpoint(top_logprobs=0)) as (a, b):
        compare(a, b)

    assert kind(tmp_path) == "undecided"
    assert headline(tmp_path).startswith("No difference found")
    assert headline(tmp_path).endswith("This does not show that they are the same.")


def test_samples_are_compared_where_greedy_answers_do_not_repeat(compare: Compare, tmp_path: Path) -> None:
    noisy = {"top_logprobs": 0, "temperature_ignored": True}
    other = TinyModel(change=3.0, sharpness=0.5)
    with serving(FakeEndpoint(**noisy), FakeEndpoint(model=other, **noisy)) as (a, b):
        compare(a, b)

    (test,) = found(tmp_path).endpoints.tests
    assert test.name.value == "samples"
    assert kind(tmp_path) == "different"
    assert test.e_value >= 20
    assert test.p == pytest.approx(1 / test.e_value)
    assert test.permutation_p is not None
    assert 0 < test.permutation_p <= 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"system_prompt": ("be", "brief", "and", "kind")}, "B counts 4 tokens more for each of"),
        ({"tokenizer_step": 40}, "another tokenizer"),
    ],
)
def test_another_template_or_tokenizer_is_said_first(
    compare: Compare, tmp_path: Path, fault: dict[str, Any], said: str
) -> None:
    with serving(FakeEndpoint(), FakeEndpoint(model=FINETUNE, **fault)) as (a, b):
        compare(a, b)

    assert kind(tmp_path) == "template_differs"
    assert "do not give their models the same prompt" in headline(tmp_path)
    assert said in found(tmp_path).verdict.sentences[1]


def test_another_way_to_count_is_no_other_model(compare: Compare, tmp_path: Path) -> None:
    """The counts differ and the predictions do not."""
    with serving(FakeEndpoint(), FakeEndpoint(tokenizer_step=40)) as (a, b):
        compare(a, b)

    assert kind(tmp_path) == "same"
    assert "another tokenizer" in found(tmp_path).verdict.sentences[1]


def test_log_probabilities_that_are_made_up_are_not_used(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(), FakeEndpoint(same_logprobs=True, model=TinyModel(change=1.0))) as (a, b):
        compare(a, b)

    text = " ".join(found(tmp_path).verdict.sentences)
    assert "B: its log-probabilities are the same after different prompts, and are not used" in text
    assert found(tmp_path).endpoints.tests[0].name.value == "greedy_first_token"
    assert kind(tmp_path) == "different"


def test_lists_of_another_model_than_the_text_do_not_show_that_endpoints_are_the_same(
    compare: Compare, tmp_path: Path
) -> None:
    with serving(FakeEndpoint(), FakeEndpoint(written_by=TinyModel(change=6.0))) as (a, b):
        done = compare(a, b, "--check")

    assert done.code == 3
    assert kind(tmp_path) == "undecided"
    assert "This does not show that they are the same" in headline(tmp_path)
    assert "The tokens of B are not drawn from the probabilities that it lists" in " ".join(
        found(tmp_path).verdict.sentences
    )


def test_a_secret_temperature_behind_equal_lists_is_told(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(), FakeEndpoint(secret_temperature=0.2)) as (a, b):
        compare(a, b)

    assert "predict alike" in headline(tmp_path)
    assert "B does not sample from the probabilities that it lists" in " ".join(found(tmp_path).verdict.sentences)


def test_a_secret_top_p_is_a_difference(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(), FakeEndpoint(secret_top_p=0.7)) as (a, b):
        compare(a, b)

    assert kind(tmp_path) == "different"


def test_a_model_that_only_thinks_is_compared_by_its_thoughts(compare: Compare, tmp_path: Path) -> None:
    chat = {"apis": ("chat",), "reasons": True, "top_logprobs": 0}
    with serving(FakeEndpoint(**chat), FakeEndpoint(model=TinyModel(change=1.0), **chat)) as (a, b):
        compare(a, b)

    results = found(tmp_path)
    assert results.endpoints.a.capabilities is not None
    assert results.endpoints.a.capabilities.thinks
    assert results.endpoints.a.capabilities.api.value == "chat"
    assert kind(tmp_path) == "different"


@pytest.mark.parametrize(("change", "expected"), [(0.0, "same"), (1.0, "different")])
def test_an_opening_that_is_always_the_same_says_nothing(
    compare: Compare, tmp_path: Path, change: float, expected: str
) -> None:
    """Two certain tokens, as a <think> tag and a line end. With ten, nothing is left to compare."""
    with serving(FakeEndpoint(opening=(1, 2)), FakeEndpoint(opening=(1, 2), model=TinyModel(change))) as (a, b):
        compare(a, b)
    assert kind(tmp_path) == expected

    with serving(FakeEndpoint(opening=(1,) * 10), FakeEndpoint(opening=(1,) * 10, model=TinyModel(change))) as (a, b):
        compare(a, b, "--force")
    assert kind(tmp_path) == "undecided"
    assert "nearly certain" in " ".join(found(tmp_path).verdict.sentences)


def test_parameters_without_effect_are_named(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(), FakeEndpoint(text="always this", top_logprobs=0)) as (a, b):
        compare(a, b)

    assert "B shows no effect of temperature." in found(tmp_path).verdict.sentences


def test_empty_answers_are_unusable(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(), FakeEndpoint(empty=True)) as (a, b):
        done = compare(a, b, "--check")

    assert kind(tmp_path) == "unusable"
    assert "B gives empty answers" in " ".join(found(tmp_path).verdict.sentences)
    assert "--chat asks both at the other API" in " ".join(found(tmp_path).verdict.sentences)
    assert done.code == 3


def test_an_interrupted_run_resumes_and_a_finished_one_asks_nothing(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(), FakeEndpoint()) as (a, b):
        compare(a, b, "--max-requests", 60)
        assert "the cap of 60 requests is reached" in headline(tmp_path)
        stopped = len(a.requests) + len(b.requests)
        compare(a, b)
        whole, asked = found(tmp_path).endpoints, len(a.requests) + len(b.requests)
        compare(a, b)

        assert stopped <= 60
        assert kind(tmp_path) == "same"
        assert asked == whole.a.requests + whole.b.requests
        assert len(a.requests) + len(b.requests) == asked


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_request_keeps_what_was_answered(compare: Compare, tmp_path: Path) -> None:
    stalled, released = threading.Event(), threading.Event()

    def stall(handler: Handler, body: dict[str, Any]) -> bool:
        if len(b.requests) > 24:
            stalled.set()
            released.wait(300)
        return False

    with serving(FakeEndpoint(), FakeEndpoint(fault=stall)) as (a, b):
        said = _interrupted([a.reference, b.reference, "-o", str(tmp_path / "run")], stalled)
        released.set()
        answered = len((tmp_path / "run" / "exchanges.jsonl").read_text().splitlines())
        compare(a, b)
        whole, asked = found(tmp_path).endpoints, len(a.requests) + len(b.requests)

    assert "repeat the same command to resume" in said
    assert answered > 20
    assert kind(tmp_path) == "same"
    assert asked <= whole.a.requests + whole.b.requests + 4  # those in flight


def _interrupted(words: list[str], when: threading.Event) -> str:
    """What the command says that gets Ctrl-C at this moment."""
    with subprocess.Popen(
        [sys.executable, "-m", "deltarank", "endpoints", *words, "--seed", "5", "--alpha", "0.05", "--no-report"],
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        try:
            assert when.wait(300)
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=60)  # a request may take 120 seconds
        finally:
            child.kill()
    assert child.returncode == 130, said
    return said


def test_a_run_is_analysed_again_offline(compare: Compare, command: RunCommand, tmp_path: Path) -> None:
    with serving(FakeEndpoint(), FakeEndpoint(model=FINETUNE)) as (a, b):
        compare(a, b)
    before = found(tmp_path)
    done = command("report", tmp_path / "run")

    assert done.code == 0
    assert found(tmp_path).endpoints == before.endpoints
    assert "do not answer alike" in done.out.replace("\n", " ")
    assert (tmp_path / "run" / "report.html").is_file()


def test_an_interrupted_run_is_analysed_as_far_as_it_came(
    compare: Compare, command: RunCommand, tmp_path: Path
) -> None:
    with serving(FakeEndpoint(), FakeEndpoint()) as (a, b):
        compare(a, b, "--max-requests", 60)
    (tmp_path / "run" / "results.json").unlink()

    assert command("report", tmp_path / "run").code == 0
    assert kind(tmp_path) == "undecided"


def test_a_run_with_other_options_is_not_resumed(compare: Compare) -> None:
    with serving(FakeEndpoint(), FakeEndpoint()) as (a, b):
        compare(a, b, "--max-requests", 4)
        done = compare(a, b, "--tolerance", 0.01)

    assert done.code == 1
    assert "tolerance" in done.err


def test_repeated_requests_count_against_the_cap_also_after_a_resumed_run(compare: Compare, tmp_path: Path) -> None:
    def every_third_fails(handler: Any, body: dict[str, Any]) -> bool:
        if len(handler.server.endpoint.requests) % 3:
            return False
        handler.send(500, {"error": {"message": "failed"}}, headers={"Retry-After": "0"})
        return True

    with serving(FakeEndpoint(fault=every_third_fails), FakeEndpoint()) as (a, b):
        compare(a, b, "--max-requests", 25)
        compare(a, b, "--max-requests", 45)

    assert len(a.requests) + len(b.requests) == 45
    assert "the cap of 45 requests is reached" in headline(tmp_path)


def everything_in(folder: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file())


def test_a_key_is_sent_and_kept_nowhere(
    compare: Compare, command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(FakeEndpoint(key=KEY, text=f"the key is {KEY}"), FakeEndpoint(key=KEY)) as (a, b):
        done = compare(a, b, "--key-a", "MY_KEY", "--key-b", "MY_KEY", "--max-requests", 80)
    command("report", tmp_path / "run")

    assert done.code == 0
    assert KEY not in done.out + done.err + everything_in(tmp_path)
    assert "the key is [key]" in everything_in(tmp_path)


def test_a_wrong_key_is_not_repeated(compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(FakeEndpoint(key="another"), FakeEndpoint()) as (a, b):
        done = compare(a, b, "--key-a", "MY_KEY")

    assert done.code == 1
    assert "Endpoint A" in done.err
    assert "refuses the key" in done.err
    assert KEY not in done.out + done.err + everything_in(tmp_path)


def test_parts_of_a_wrong_key_are_not_repeated(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    """As hosts mask it: the first letters, asterisks, the last letters."""
    monkeypatch.setenv("MY_KEY", KEY)
    refusal = {"error": {"message": f"Incorrect API key provided: {KEY[:7]}****{KEY[-4:]}. Find yours on our page."}}
    with serving(FakeEndpoint(fault=status(401, refusal)), FakeEndpoint()) as (a, b):
        done = compare(a, b, "--key-a", "MY_KEY")

    assert "Incorrect API key provided: [key] Find yours" in " ".join(done.err.split())
    assert KEY[:7] not in done.err
    assert KEY[-4:] not in done.err


def test_a_key_on_the_command_line_is_refused_and_not_repeated(compare: Compare, tmp_path: Path) -> None:
    done = compare("tiny@http://127.0.0.1:9/v1", "tiny@http://127.0.0.1:9/v1", "--key-a", KEY)

    assert done.code == 2
    assert "environment variable" in done.err
    assert KEY not in done.out + done.err
    assert not (tmp_path / "run").exists()


def status(code: int, payload: Any, times: int = 10**6, **headers: str) -> Fault:
    left = [times]

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        left[0] -= 1
        if left[0] < 0:
            return False
        handler.send(code, payload, headers={name.replace("_", "-"): each for name, each in headers.items()})
        return True

    return fault


def cut(handler: Handler, body: dict[str, Any]) -> bool:
    """Half of an answer."""
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"cho')
    handler.close_connection = True
    return True


def slow(handler: Handler, body: dict[str, Any]) -> bool:
    time.sleep(0.6)
    return False


RATE_LIMIT = {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}
LATER = "Fri, 01 Jan 2100 00:00:00 GMT"


@pytest.mark.parametrize(
    ("fault", "said", "slug"),
    [
        (status(200, b"<html><body>Log in</body></html>"), "answered with an HTML page", "endpoint-not-json"),
        (status(404, b"<html><body>Lost</body></html>"), "(HTTP 404): an HTML page", "endpoint-not-found"),
        (
            status(200, b"[\xff", Content_Type="application/json; charset=utf-16"),
            "not a JSON object",
            "endpoint-not-json",
        ),
        (status(200, {"error": {"code": 429}}, Retry_After="0"), "limits the rate", "endpoint-busy"),
        (status(403, {"error": {"message": "not here"}}), "no key (HTTP 403): not here", "endpoint-key-refused"),
        (status(200, b"[1, 2]"), "not a JSON object", "endpoint-not-json"),
        (status(200, b"[" * 100_000), "not a JSON object", "endpoint-not-json"),
        (status(429, RATE_LIMIT, Retry_After="0"), "limits the rate", "endpoint-busy"),
        (status(429, RATE_LIMIT, Retry_After="86400"), "to wait 24 h (deltarank waits 1 min at most)", "endpoint-busy"),
        (status(503, b"", Retry_After=LATER), "at most): no reason given", "endpoint-busy"),
        (status(429, {"error": {"message": "no", "code": "insufficient_quota"}}), "no quota left", "endpoint-quota"),
        (status(503, b"overloaded", Retry_After="0"), "keeps failing (HTTP 503)", "endpoint-busy"),
        (status(404, {"error": {"message": "no such model"}}), "no such model", "endpoint-not-found"),
        (status(307, b"", Location="http://example.com/"), "redirects", "endpoint-not-found"),
        (stream_forever, "did not finish an answer", "endpoint-too-slow"),
        (slow, "did not finish an answer", "endpoint-too-slow"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_a_failing_endpoint_gives_one_clear_error(compare: Compare, fault: Fault, said: str, slug: str) -> None:
    with serving(FakeEndpoint(), FakeEndpoint(fault=fault)) as (a, b):
        done = compare(a, b, "--timeout", 0.4 if slug == "endpoint-too-slow" else 20)

    assert done.code == 1
    assert "Endpoint B (127.0.0.1" in done.err
    assert said in " ".join(done.err.split())
    assert f"explain {slug}" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (("completions",), ("chat",), "A only at /completions and B only at /chat/completions"),
        (("completions",), (), "Endpoint B"),
        ((), ("chat",), "Endpoint A"),
    ],
)
def test_the_endpoint_that_lacks_the_api_is_named(
    compare: Compare, a: tuple[str, ...], b: tuple[str, ...], said: str
) -> None:
    with serving(FakeEndpoint(apis=a), FakeEndpoint(apis=b)) as both:
        done = compare(*both)

    assert done.code == 1
    assert said in " ".join(done.err.split())


def test_a_cut_answer_is_asked_for_again(compare: Compare, tmp_path: Path) -> None:
    once = [cut]

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        return once.pop()(handler, body) if once else False

    with serving(FakeEndpoint(), FakeEndpoint(fault=fault)) as (a, b):
        compare(a, b)

    assert kind(tmp_path) == "same"


def test_passing_failures_are_waited_out(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(), FakeEndpoint(fault=status(429, RATE_LIMIT, times=3, Retry_After="0"))) as (a, b):
        compare(a, b)

    assert kind(tmp_path) == "same"


def test_until_when_to_wait_is_read_by_the_clock_of_the_host(compare: Compare, tmp_path: Path) -> None:
    busy = status(429, RATE_LIMIT, times=3, Retry_After=LATER)

    def in_another_century(handler: Handler, body: dict[str, Any]) -> bool:
        handler.date_time_string = lambda timestamp=None: LATER  # type: ignore[method-assign]
        return busy(handler, body)

    with serving(FakeEndpoint(), FakeEndpoint(fault=in_another_century)) as (a, b):
        compare(a, b)

    assert kind(tmp_path) == "same"


def test_no_such_host_and_no_tls(compare: Compare) -> None:
    with serving(FakeEndpoint()) as (a,):
        nobody = compare(a, "tiny@http://nobody.invalid/v1")
        no_tls = compare(a, a.reference.replace("http://", "https://"), "--force")

    assert (nobody.code, no_tls.code) == (1, 1)
    assert "cannot be reached" in nobody.err
    assert "cannot be trusted" in no_tls.err


@pytest.mark.parametrize(
    "given",
    [
        "tiny",
        "@http://host/v1",
        "tiny@ftp://host/v1",
        "tiny@http://user:hunter2@host/v1",
        "tiny@http://h/v1?key=hunter2",
        "tiny@http://h:abc/v1",
        "tiny@http://h:99999/v1",
        "tiny@http://[::1/v1",
        "tiny@http://ex ample/v1",
        f"tiny@http://{'h' * 70}/v1",
    ],
)
def test_what_is_no_endpoint_is_refused_without_repeating_a_password(compare: Compare, given: str) -> None:
    done = compare("tiny@http://127.0.0.1:9/v1", given)

    assert done.code == 2
    assert "endpoint-reference" in done.err
    assert "hunter2" not in done.err


def test_hostile_text_stays_text(command: RunCommand, compare: Compare, tmp_path: Path) -> None:
    text = "<script>alert(1)</script>\u202e\x1b[31m{{7*7}}\ud800"
    with serving(FakeEndpoint(), FakeEndpoint(text=text)) as (a, b):
        compare(a, b)
    command("report", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_a_polite_user_sends_few_requests_at_a_time(compare: Compare) -> None:
    with serving(FakeEndpoint(), FakeEndpoint()) as (a, b):
        compare(a, b, "--max-requests", 80)

    assert max(a.most_at_once, b.most_at_once) <= 2


def test_prompts_are_fresh_and_interleaved(command: RunCommand, tmp_path: Path) -> None:
    prompts = []
    for run in ("one", "two"):
        with serving(FakeEndpoint(), FakeEndpoint(model=FINETUNE)) as (a, b):
            command("endpoints", a.reference, b.reference, "-o", tmp_path / run, "--no-report", "-q")
        prompts.append({body["prompt"] for body in a.requests})
        keys = [json.loads(line) for line in (tmp_path / run / "exchanges.jsonl").read_text().splitlines()]
        tests = [(each["side"], int(each["key"].split(":")[2])) for each in keys if "first_token" in each["key"]]
        assert {side for side, number in tests[:4]} == {"a", "b"}
        assert {number for _, number in tests[:4]} == {0}

    assert not prompts[0] & prompts[1]


def test_a_dry_run_sends_nothing(command: RunCommand, tmp_path: Path) -> None:
    with serving(FakeEndpoint(), FakeEndpoint()) as (a, b):
        words = ("--dry-run", "--price-in", 1, "--price-out", 4, "-o", tmp_path / "run")
        done = command("endpoints", a.reference, b.reference, *words)

    assert done.code == 0
    assert "log-probabilities of the first token" in done.out
    assert "Nothing was sent." in done.out
    assert "A tokenizer of bytes makes 3 times as many tokens of prompts" in " ".join(done.out.split())
    assert not a.requests + b.requests
    assert not (tmp_path / "run").exists()


def test_caps_hold(compare: Compare, tmp_path: Path) -> None:
    with serving(FakeEndpoint(), FakeEndpoint()) as (a, b):
        compare(a, b, "--max-tokens", 1500)
        tokens = found(tmp_path).endpoints
        assert "the cap of 1,500 tokens is reached" in headline(tmp_path)
        assert sum(each.prompt_tokens + each.completion_tokens for each in (tokens.a, tokens.b)) <= 1500
        compare(a, b, "--max-cost", 0.001, "--price-in", 1, "--price-out", 1, "--force")
        assert "for the cost is reached" in headline(tmp_path)


MOST_TOKENS, MOST_COST = ("--max-tokens", 6000), ("--max-cost", 0.006, "--price-in", 1, "--price-out", 1)


@pytest.mark.parametrize(
    ("settings", "cap"),
    [
        ({"counts_bytes": True}, MOST_TOKENS),
        ({"counts_bytes": True}, MOST_COST),
        ({"system_prompt": ("hidden",) * 300}, MOST_TOKENS),
        ({"counts_at_least": 200}, MOST_COST),
    ],
)
def test_caps_hold_whatever_an_endpoint_counts(
    compare: Compare, tmp_path: Path, settings: dict[str, Any], cap: tuple[object, ...]
) -> None:
    with serving(FakeEndpoint(**settings), FakeEndpoint(**settings)) as (a, b):
        compare(a, b, *cap, "--concurrency", 8)

    used = found(tmp_path).endpoints
    assert "is reached" in headline(tmp_path)
    assert 2000 < sum(each.prompt_tokens + each.completion_tokens for each in (used.a, used.b)) <= 6000


def test_caps_hold_where_nothing_is_counted_and_after_a_resumed_run(compare: Compare, tmp_path: Path) -> None:
    """Each byte is taken for a token."""
    with serving(FakeEndpoint(counts_tokens=False), FakeEndpoint(counts_tokens=False)) as (a, b):
        compare(a, b, "--max-tokens", 6000, "--concurrency", 8)
        sent = len(a.requests) + len(b.requests)
        compare(a, b, "--max-tokens", 6000, "--concurrency", 8)

    bodies = [*a.requests, *b.requests]
    assert "the cap of 6,000 tokens is reached" in headline(tmp_path)
    assert len(bodies) == sent
    assert 2000 < sum(len(each["prompt"].encode()) + each["max_tokens"] * each.get("n", 1) for each in bodies) <= 6000


def test_a_cap_on_the_cost_needs_prices(compare: Compare) -> None:
    done = compare("a@http://127.0.0.1:9", "b@http://127.0.0.1:9", "--max-cost", 1)

    assert done.code == 2
    assert "--price-in" in done.err
