"""Which keys of a config a module reads."""

import ast

import pytest

from verl_gsd.run.config_reads import read_keys


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ("def f(config): return config.data.train_batch_size", {"data.train_batch_size"}),
        ("check = lambda c: not c.algorithm.use_kl_in_reward", {"algorithm.use_kl_in_reward"}),
        (
            "def f(config):\n  actor, n = config.actor.actor, 1\n  return actor.strategy, n",
            {"actor.actor", "actor.actor.strategy"},
        ),
        ("class T:\n  def f(self): return self.config.trainer.v1.mode", {"trainer.v1.mode"}),
        ("def f(config): return config.trainer.get('val_only')", {"trainer"}),
        ("def f(config):\n  config.trainer.logger = [1]", {"trainer.logger"}),
        ("def f(config):\n  def g(): return config.data.seed\n  return g", {"data.seed"}),
        ("def f(config):\n  data = config.data\n  data = 1\n  return data.real", {"data"}),
        ("def f(config): return lambda config: config.a.b", {"a.b"}),
        ("def f(model): return model.config.hidden_size, other.data", set()),
        ("def f(config): return load(config.a, key=config.b.c)", {"a", "b.c"}),
    ],
)
def test_keys_are_those_of_attributes_of_a_config(source, keys):
    assert read_keys(ast.parse(source)) == keys
