"""DaGRPO's settings: every wrong value names its key, and delta is a number, a way or a quantile."""

import math

import pytest
from omegaconf import OmegaConf

from verl_gsd import extension
from verl_gsd.algorithms.dagrpo.settings import MaskDelta, MaskSettings

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create], ids=["dict", "OmegaConf"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, MaskDelta(3.0, 3.0)),
        (-0.5, MaskDelta(-0.5, -0.5)),
        (-INF, MaskDelta(-INF, -INF)),
        (INF, MaskDelta(INF, INF)),
        ({"from": 1, "to": 5, "steps": 200}, MaskDelta(1.0, 5.0, 200)),
        ({"from": 5, "to": -1.5, "steps": 1}, MaskDelta(5.0, -1.5, 1)),
        ({"quantile": 0.25}, MaskDelta(quantile=0.25)),
        ({"quantile": 0}, MaskDelta(quantile=0.0)),
        ({"quantile": 1}, MaskDelta(quantile=1.0)),
    ],
)
def test_a_delta_is_a_number_a_way_or_a_quantile(wrap, value, expected):
    section = wrap({"delta": value, "judge": {"scorer": "stub"}, "demonstrations": None})
    assert MaskSettings.of(section) == MaskSettings(delta=expected)
    assert MaskDelta.of(section["delta"]) == expected


def test_only_a_delta_that_is_minus_infinity_for_good_needs_no_judge():
    assert MaskDelta.of(-INF).keeps_all
    for value in (-100, INF, {"quantile": 0.0}, {"from": -5, "to": -5, "steps": 1}):
        assert not MaskDelta.of(value).keeps_all


def test_every_key_of_the_section_is_read_and_null_is_no_value_but_where_it_means_none():
    given_ = {"signed": False, "mask": "mean", "rescale": True, "fail_closed": True, "probe_every": 7}
    expected = MaskSettings(delta=MaskDelta(1.0, 1.0), **given_)
    assert vars(expected).items() >= given_.items()
    assert MaskSettings.of(OmegaConf.create({"delta": 1} | given_)) == expected
    assert MaskSettings.of(OmegaConf.create({"delta": 1, "probe_every": None})) == MaskSettings(
        delta=MaskDelta(1.0, 1.0)
    )
    for key in given_.keys() - {"probe_every"}:
        with pytest.raises(ValueError, match=f"{key}=null"):
            MaskSettings.of({"delta": 1, key: None})


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create], ids=["dict", "OmegaConf"])
@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"delta": None}, "delta=null"),
        ({"delta": NAN}, "delta=nan"),
        ({"delta": "3"}, "delta=3"),
        ({"delta": True}, "delta=true"),
        ({"delta": [1, 3]}, r"delta=\[1, 3\]"),
        ({"delta": {}}, r"delta=\{\}"),
        ({"delta": {"quantile": 1.5}}, r"delta=\{'quantile': 1\.5\}"),
        ({"delta": {"quantile": -0.1}}, "delta="),
        ({"delta": {"quantile": NAN}}, "delta="),
        ({"delta": {"quantile": True}}, "delta="),
        ({"delta": {"quantile": "0.5"}}, "delta="),
        ({"delta": {"quantile": 0.5, "steps": 3}}, "delta="),
        ({"delta": {"from": 1, "to": 5}}, "delta="),
        ({"delta": {"from": 1, "steps": 5}}, "delta="),
        ({"delta": {"from": 1, "to": 5, "steps": 0}}, "delta="),
        ({"delta": {"from": 1, "to": 5, "steps": 2.0}}, "delta="),
        ({"delta": {"from": 1, "to": 5, "steps": True}}, "delta="),
        ({"delta": {"from": -INF, "to": 5, "steps": 2}}, "delta="),
        ({"delta": {"from": 1, "to": NAN, "steps": 2}}, "delta="),
        ({"delta": {"from": "1", "to": 5, "steps": 2}}, "delta="),
        ({"delta": {"from": 1, "to": 5, "steps": 2, "quantile": 0.5}}, "delta="),
        ({"delta": 3, "signed": "no"}, "signed=no"),
        ({"delta": 3, "rescale": 1}, "rescale=1"),
        ({"delta": 3, "fail_closed": "yes"}, "fail_closed=yes"),
        ({"delta": 3, "mask": "median"}, "mask=median.*pairs, min, mean, max"),
        ({"delta": 3, "mask": ["min"]}, r"mask=\['min'\]"),
        ({"delta": 3, "probe_every": 0}, "probe_every=0"),
        ({"delta": 3, "probe_every": 2.0}, r"probe_every=2\.0"),
        ({"delta": 3, "probe_every": True}, "probe_every=true"),
        ({"delta": 3, "detla": 3, "margin": 1}, "detla: .*Did you mean delta"),
        ({"delta": 3, "detla": 3, "margin": 1}, "margin: .*delta, signed, mask, .*judge"),
    ],
)
def test_a_wrong_value_is_refused_and_its_key_named(wrap, section, words):
    with pytest.raises(ValueError, match=words):
        MaskSettings.of(wrap(section))
    with pytest.raises(ValueError, match=r"algorithm\.gsd\.dagrpo\b"):
        extension.build(wrap({"dagrpo": section}))
