"""``python -m verl_gsd.cli``: the commands where no script of ours is installed, as in a job's working directory."""

from verl_gsd.cli.main import app

app(prog_name="verl-gsd")
