"""The patterns of secrets are searched in values that others made, so that they take a time linear in the length."""

import time

import pytest

from verl_gsd.export.card import public_settings
from verl_gsd.secret_patterns import SECRET_NAME, SECRET_VALUE

N = 100_000
HOSTILE = [
    *("://" + ":" * N, "://a" * N, "://" + "a" * N, "://:" + "a" * N, "basic " + "aA" * N + "!", "basic" + " " * N),
    *(
        "basic " + "aA" * N + "=" + " " * N + "!",
        " " * N + "x",
        "\n" * N + "basic",
        "bearer " + "x" * N + " " * N + "y z",
    ),
    *("authorization:" * N, "authorization: bearer " * N, "authorization: basic " * N, "SG." * N, "SG." + "a" * N),
    *("-----BEGIN " + "A " * N, "-----BEGIN " * N, "sk-ant-" + "a" * N + "!", "sk-ant-" * N, "hf_" * N, "a" * N),
    *("eyJ" * N, "?sig=" * N, "&x-amz-signature=" * N, "hooks.slack.com/" * N, "api" * N, "_key" * N + "x", "gsk_" * N),
]


@pytest.mark.parametrize("text", [text[: 2 * N] for text in HOSTILE], ids=lambda text: repr(text)[:30])
def test_hostile_texts_are_searched_in_linear_time(text):
    begin = time.process_time()
    SECRET_VALUE.search(text), SECRET_NAME.search(text)
    public_settings({"algorithm": {"gsd": {"a": [text, {"b": text}]}}})
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("text", "is_secret"),
    [
        *((f"x://{name}@host", True) for name in ("me:pw", ":pw", "a:b:c", "::", "me:pw:")),
        *((f"x://{name}@host", False) for name in ("me", "me:", "", ":", "a/b:c")),
        ("basic abCdefgh==", True),
        (" Basic aB1234 ", True),
        ("basic aB123", False),
        ("basic abcdefgh", False),
        ("basic aB1234 x", False),
    ],
)
def test_a_password_has_a_name_or_the_shape_of_base64(text, is_secret):
    assert bool(SECRET_VALUE.search(text)) == is_secret
