"""A rehearsal: the resolved config of a run, trained for three steps on a CPU with a tiny model.

config.py         makes the rehearsal's config, and lists what it preserves and what it replaces
model.py          writes a tiny random model of the same architecture
data.py           writes the first rows of the data, with all columns
references.py     checks that the reward function accepts the data's reference answers
seeded_rewards.py the reward function of a rehearsal: the real one runs first, then seeded scores replace its score
judge_stand_in.py a local HTTP server in place of a judge
observations.py   reads from the run's files what was seen to work and what was not
resumed.py        reads whether the resume restored the optimizer, the place in the data and our state
failures.py       explains why the run of a rehearsal failed
report.py         what a rehearsal found, as text

``verl_gsd/cli/rehearse.py`` puts them together.
"""
