"""Models of config sections: a wrong value is one sentence with its remedy, and YAML files have the same defaults."""

import math
import pickle
import traceback
from typing import Annotated, Literal

import pytest
from omegaconf import OmegaConf
from pydantic import BaseModel, Field, field_validator, model_validator

from verl_gsd import extension
from verl_gsd.config import load
from verl_gsd.run.checks.limits import LimitSettings
from verl_gsd.settings import SectionSettings, SettingsError


class Example(SectionSettings):
    parts = ("inner",)

    share: float = Field(0.5, gt=0, le=1)
    steps: int | None = Field(None, ge=1)
    ratio: Annotated[float, Field(ge=0, lt=2)] | None = 1.0
    kind: Literal["hard", "soft"] | None = "hard"
    on: bool = True
    column: str = Field("text", min_length=1)
    token: str = Field("", repr=False)
    even: int = 2

    @field_validator("even")
    @classmethod
    def _check_even(cls, value):
        if value % 2:
            raise ValueError("odd. Set it to an even number")
        return value


class Required(SectionSettings):
    limit: float


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create], ids=["dict", "OmegaConf"])
@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"share": 0}, "share=0: out of range. Set it to a number above 0 and up to 1."),
        ({"share": 1.5}, "share=1.5: out of range. Set it to a number above 0 and up to 1."),
        ({"share": math.nan}, "share=nan: not finite. Set it to a number above 0 and up to 1."),
        ({"share": "1"}, "share=1: wrong type (str). Set it to a number above 0 and up to 1."),
        ({"share": True}, "share=true: wrong type (bool). Set it to a number above 0 and up to 1."),
        ({"share": None}, "share=null: it cannot be null. Set it to a number above 0 and up to 1."),
        ({"steps": 0}, "steps=0: out of range. Set it to a whole number of 1 or more, or to null."),
        ({"steps": 2.0}, "steps=2.0: wrong type (float). Set it to a whole number of 1 or more, or to null."),
        ({"ratio": 2}, "ratio=2: out of range. Set it to a number of 0 or more and below 2, or to null."),
        ({"kind": "sfot"}, "kind=sfot: no such value. Set it to one of hard, soft, or to null. Did you mean soft?"),
        ({"kind": 3}, "kind=3: no such value. Set it to one of hard, soft, or to null."),
        ({"kind": ["hard"]}, "kind=['hard']: no such value. Set it to one of hard, soft, or to null."),
        ({"on": "yes"}, "on=yes: wrong type (str). Set it to true or false."),
        ({"column": ""}, "column=: too short. Set it to a string with 1 or more characters."),
        ({"token": 7}, "token: wrong type (int). Set it to a string."),
        ({"even": 3}, "even=3: odd. Set it to an even number."),
        ({"shaer": 1}, "shaer: no such key. Did you mean share?"),
        ({"inn": 1}, "inn: no such key. Did you mean inner?"),
        (
            {"zzz": 1},
            "zzz: no such key. Keys are share, steps, ratio, kind, on, column, token, even, inner.",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence_that_says_what_to_set(wrap, section, problem):
    with pytest.raises(SettingsError) as error:
        Example.of(wrap(section))
    assert error.value.problems == (problem,)


@pytest.mark.parametrize("section", [3, "often", False, [1]])
def test_what_is_no_section_is_said(section):
    with pytest.raises(SettingsError, match=r"is not a section\. Set it to a section with keys, or to null\.$"):
        Example.of(section)


def test_every_problem_of_a_section_is_named_at_once():
    with pytest.raises(SettingsError) as error:
        Example.of({"share": 0, "on": 1, "kin": "hard"})
    assert [problem.partition(":")[0] for problem in error.value.problems] == ["share=0", "on=1", "kin"]
    assert str(error.value) == "\n".join(error.value.problems)


def test_a_key_without_a_default_is_asked_for():
    with pytest.raises(SettingsError) as error:
        Required.of({})
    assert error.value.problems == ("limit is missing. Set it.",)


def test_right_values_are_kept_and_settings_are_returned_as_they_are():
    settings = Example.of({"share": 1, "steps": None, "kind": "soft", "inner": {"anything": 1}})
    assert settings == Example(share=1.0, kind="soft") and isinstance(settings.share, float)
    assert Example.of(settings) is settings
    assert Example.default("share") == 0.5


def test_what_may_be_a_secret_is_not_repeated_even_in_a_traceback():
    secret = "".join(("hunter", "2"))  # a traceback quotes the lines of this test
    with pytest.raises(SettingsError) as error:
        Example.of({"token": [secret]})
    assert "hunter2" not in "".join(traceback.format_exception(error.value))


#: Sections of our config, each with the YAML file that documents its keys.
DOCUMENTED = {
    "hadw": ("algo", "_hadw"),
    "dagrpo": ("algo", "_mask"),
    "dagrpo.judge": ("algo", "_mask"),
    "dagrpo.demonstrations": ("algo", "_demonstration_section"),
    "gvpo": ("algo", "gvpo"),
    "limits": ("algo", "_base"),
    "budget": ("budget", "adaptive"),
    "sampler": ("sampler", "disagreement"),
    "silent_groups": ("silent_groups", "left_out"),
}


def model_of(name):
    return LimitSettings if name == "limits" else extension.load(extension.declared(name).settings)


def test_every_section_of_ours_has_a_model_and_a_yaml_file_and_no_two_models_share_a_name():
    ours = [of for of in extension.declarations() if extension.is_ours(of)]
    assert {"limits", *(of.name for of in ours)} == DOCUMENTED.keys()
    assert len({model_of(name).__name__ for name in DOCUMENTED}) == len(DOCUMENTED)
    for declaration in ours:
        parent, _, part = declaration.name.rpartition(".")
        assert not parent or part in model_of(parent).parts, "the parent accepts the keys of its parts"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_yaml_file_has_every_setting_of_its_section_with_the_models_default(name, monkeypatch, tmp_path):
    monkeypatch.setenv("VERL_GSD_CACHE", str(tmp_path))
    model = model_of(name)
    node = OmegaConf.select(load(*DOCUMENTED[name]), f"algorithm.gsd.{name}")
    section = {key: value for key, value in node.items() if key not in model.parts}  # resolves interpolations
    assert section.keys() == model.model_fields.keys()
    settings = model.of(section)
    for key in section:
        assert getattr(settings, key) == model.default(key), key


def test_an_error_of_settings_survives_ray():
    error = SettingsError(["beta=0: out of range.", "gamma: no such key."])
    copy = pickle.loads(pickle.dumps(error))
    assert copy.problems == error.problems and str(copy) == str(error)


def test_a_model_within_the_model_keeps_its_secrets_and_a_problem_of_the_whole_has_no_key():
    class Server(BaseModel):
        key: str = Field(repr=False, max_length=3)

    class Mine(SectionSettings):
        low: float = 0.0
        high: float = 1.0
        server: Server | None = None

        @model_validator(mode="after")
        def _check_order(self):
            if self.low > self.high:
                raise ValueError("low exceeds high. Set low to less than high")
            return self

    with pytest.raises(SettingsError) as caught:
        Mine.of({"server": {"key": "sk-secret"}})
    assert "server.key" in str(caught.value) and "secret" not in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        Mine.of({"low": 2.0})
    assert caught.value.problems == (": low exceeds high. Set low to less than high.",)
    assert str(caught.value) == "low exceeds high. Set low to less than high."
