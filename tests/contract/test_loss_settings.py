"""Settings of our policy losses, which verl instantiates: their defaults, and what is said of wrong ones."""

from dataclasses import fields

import pytest

pytest.importorskip("verl")
from verl.workers.config import PolicyLossConfig

from verl_gsd.config import load
from verl_gsd.trainer.losses import DagrpoLossConfig, GVPOLossConfig


@pytest.mark.parametrize(
    ("kind", "file"), [(GVPOLossConfig, "gvpo"), (DagrpoLossConfig, "_demonstrations")], ids=["gvpo", "dagrpo"]
)
def test_a_yaml_file_has_every_setting_of_its_loss_with_the_default(kind, file):
    section = dict(load("algo", file).actor_rollout_ref.actor.policy_loss)
    assert section.pop("_target_") == f"verl_gsd.trainer.losses.{kind.__name__}"
    verls = {field.name for field in fields(PolicyLossConfig)} - {"loss_mode"}
    defaults = {field.name: field.default for field in fields(kind) if field.name not in verls}
    assert section == {name: value for name, value in defaults.items() if not name.startswith("_")}


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (GVPOLossConfig, {"beta": 0}, r"^beta=0: out of range\. Set it to a finite number above 0"),
        (GVPOLossConfig, {"normalizer": "k-2"}, r"^normalizer=k-2: no such value\. .*k-1, k, none\. .*mean k-1\?$"),
        (GVPOLossConfig, {"reference": "odl"}, r"^reference=odl: no such value\. .*old, ref\. Did you mean old\?$"),
        (GVPOLossConfig, {"var": 1}, r"^var=1: wrong type \(int\)\. Set it to true or false\.$"),
        (GVPOLossConfig, {"cov": "no"}, r"^cov=no: wrong type \(str\)\. Set it to true or false\.$"),
        (DagrpoLossConfig, {"ratio": "shapd"}, r"^ratio=shapd: no such value\. .*shaped, one\. .*mean shaped\?$"),
        (DagrpoLossConfig, {"on_policy": "gsop"}, r"^on_policy=gsop: no such value\. .*gspo\. Did you mean gspo\?$"),
    ],
)
def test_a_wrong_setting_of_a_loss_is_said_as_one_of_a_section(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)
