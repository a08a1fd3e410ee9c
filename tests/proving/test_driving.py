"""What stands in for the driver: questions that wait for their answer, effects in words, what is known of TLS."""

import pytest

from smtpproxy.proving.driving import TLS, Clock, Outside, tls_info, words_of
from smtpproxy.session.effects import Abort, Ask, Dial, PrepareTLS, StartTLS
from smtpproxy.session.verdicts import (
    PASS,
    Action,
    Call,
    CommandRule,
    Failed,
    Keep,
    PassAll,
    Question,
    Verdict,
    Wait,
)
from smtpproxy.smtp.errors import Side
from smtpproxy.smtp.replies import own
from tests.play import HELLO, MismatchError, play

ASKS = Question(Wait(2.0), 3.0, lambda answer: PASS)


class Slow(PassAll):
    """NOOP waits; whoever is told that it failed refuses."""

    def __init__(self, about: Wait | Keep = ASKS.about) -> None:  # type: ignore[assignment]
        def resume(answer: object) -> Verdict:
            return Verdict(Action.ANSWER, own(f"451 {answer.why}"), "slow") if isinstance(answer, Failed) else PASS

        rule: CommandRule = lambda command, session: Verdict(Action.ASK, Question(about, 9.0, resume))  # noqa: E731
        self.commands = {"NOOP": rule}


def test_the_clock_has_gone_on_by_a_wait() -> None:
    script = f"{HELLO}\nC> NOOP\n-> wait 2\n>S NOOP\nS> 250 Ok\n>C 250 Ok"
    assert play(script, rules=Slow())[-1]["seconds"] == 2.0


def test_who_is_patient_says_when_it_is_decided() -> None:
    script = (
        f"{HELLO}\nC> NOOP\nC> RSET\n-> wait 2\n!! decided\n>S NOOP\n>S RSET\nS> 250 Ok\nS> 250 R\n>C 250 Ok\n>C 250 R"
    )
    play(script, rules=Slow(), patient=True)
    play(f"{HELLO}\nC> NOOP\n-> wait 2\n!! decided fails too bad\n>C 451 too bad", rules=Slow(), patient=True)
    with pytest.raises(MismatchError, match="nothing was asked"):
        play(f"{HELLO}\n!! decided", rules=Slow())


def test_answers_are_by_the_rule_that_asks() -> None:
    keep = Keep("slow", "", None, {})
    play(f"{HELLO}\nC> NOOP\n-> keep\n>C 451 full", rules=Slow(keep), answers={"slow": Failed("full")})


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (PrepareTLS(Side.CLIENT), "prepare-tls client"),
        (StartTLS(Side.SERVER), "start-tls server"),
        (Abort(Side.SERVER), "abort server"),
        (Dial(), "dial"),
        (Dial("mx2.example", 25), "dial mx2.example:25"),
        (Dial("2001:db8::1", 25), "dial [2001:db8::1]:25"),
        (Ask(1, ASKS), "wait 2"),
        (Ask(1, ASKS._replace(about=Keep("r", "", None, {}))), "keep"),
        (Ask(1, ASKS._replace(about=Call(lambda: None, False, "r"))), ""),
    ],
)
def test_effects_in_words(effect: Dial | Ask | Abort | PrepareTLS | StartTLS, words: str) -> None:
    assert words_of(effect) == words


def test_what_is_known_of_tls() -> None:
    assert tls_info([]) == TLS
    assert tls_info(["verified", "version=TLSv1.2", "sni=a"]) == TLS._replace(verified=True, version="TLSv1.2", sni="a")
    for word in ("version", "keylog=yes", "seconds=1"):
        with pytest.raises(ValueError, match="says nothing about TLS"):
            tls_info([word])


def test_each_mail_is_kept_under_a_name_of_its_own() -> None:
    outside = Outside(Clock())
    question = ASKS._replace(about=Keep("r", "", None, {}))
    assert [outside.answer(question) for _ in range(2)] == ["kept-1", "kept-2"]
