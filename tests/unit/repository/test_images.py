"""What runs elsewhere: images, the Slurm script, the RayJob. Linted, and read for what they promise."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import BINARIES, ROOT

from verl_gsd.run.checks.memory import check_memory
from verl_gsd.run.compose import compose_config, parse_line, resolve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
LOCKS = ROOT / "scripts/locks"
IMAGES = sorted(path for path in (ROOT / "docker").glob("Dockerfile*") if path.suffix != ".dockerignore")


def instructions(image):
    """[(instruction, arguments)] of a Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in image.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_hadolint_has_no_complaint(image):
    done = subprocess.run([BINARIES / "hadolint", image], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_an_image_is_pinned_holds_no_secret_and_does_not_run_as_root(image):
    parsed = instructions(image)
    last_stage = parsed[max(i for i, (name, _) in enumerate(parsed) if name == "FROM") :]
    users = [arguments for name, arguments in last_stage if name == "USER"]
    assert users and users[-1].isdecimal() and int(users[-1]) > 0, "by number, or Kubernetes cannot tell it is not root"
    for name, arguments in parsed:
        assert name in {"FROM", "RUN", "COPY", "WORKDIR", "USER", "CMD", "SHELL"}, f"{name}: no ADD, ARG or ENV"
        if name == "FROM":
            tag = arguments.split()[0].rpartition(":")[2]
            assert re.search(r"\d", tag) and "latest" not in tag
        for package in re.findall(r"pip install ((?:[^&|;]|\n)+)", arguments if name == "RUN" else ""):
            words = ["", *shlex.split(package)]
            values = [word for option, word in pairwise(words) if "index-url" not in option]
            names = [word for word in values if not word.startswith(("-", "/"))]  # /: a file of the build
            assert all("==" in word for word in names), names


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_a_build_sees_what_it_copies_and_nothing_else(image):
    ignore = image.with_name(image.name + ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    admitted = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    copied = [word for name, arguments in instructions(image) if name == "COPY" for word in arguments.split()[:-1]]
    assert copied and all(any(Path(word).match(pattern) for pattern in admitted) for word in copied)
    assert all(list(ROOT.glob(pattern)) for pattern in admitted)


def locked(name):
    """{package: its requirement} of a lock file; fails where a package has no exact version or no hash."""
    text = "\n".join(line for line in (LOCKS / name).read_text().splitlines() if not line.startswith("#"))
    requirements = {}
    for entry in re.sub(r" *\\\n *", " ", text).splitlines():
        words = entry.split(" --hash=sha256:")
        requirement = Requirement(words[0])
        (version,) = requirement.specifier
        assert version.operator == "==" and len(words) > 1, entry[:80]
        assert all(re.fullmatch("[0-9a-f]{64}", digest.strip()) for digest in words[1:]), entry[:80]
        requirements[canonicalize_name(requirement.name)] = version.version
    return requirements


@pytest.mark.parametrize(
    ("name", "extra"), [("cpu.txt", "cpu"), ("gpu.txt", "gpu"), ("image-gpu.txt", None), ("build.txt", None)]
)
def test_a_lock_has_exact_versions_and_hashes_that_pyproject_allows(name, extra):
    """The lists are installed without dependencies: what they lack is missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    versions = locked(name)
    required = project["build-system"]["requires"] if name == "build.txt" else project["project"]["dependencies"]
    for text in (*required, *project["project"]["optional-dependencies"].get(extra, ())):
        requirement = Requirement(text)
        package = canonicalize_name(requirement.name)
        if extra or name == "build.txt" or package in versions:
            assert requirement.specifier.contains(versions[package]), text
    assert extra != "cpu" or not {"torchvision", "torchaudio", "torchcodec"} & versions.keys(), "their builds want CUDA"


def test_the_gpu_image_adds_what_was_tested_together():
    assert locked("image-gpu.txt").items() <= locked("gpu.txt").items()


def test_the_gpu_image_fails_to_build_where_a_requirement_of_ours_is_missing():
    """The line of its Dockerfile, run here: it passes, and not with a requirement more that nobody has."""
    written = " ".join(arguments for _, arguments in instructions(ROOT / "docker/Dockerfile"))
    (script,) = re.findall(r'python3 -c "(import importlib.*?)"', written)
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    more = "; m.requires = lambda _: ['torch', 'nobody-has-this>=1'];"
    broken = script.replace("as p;", f"as p{more}", 1)
    done = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True)
    assert done.returncode != 0 and "nobody-has-this" in done.stderr


def test_the_slurm_script_is_clean():
    done = subprocess.run([BINARIES / "shellcheck", ROOT / "scripts/slurm.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


#: What Ray's head writes into its session folder, and its job server.
ADDRESS, SERVER = "192.0.2.1:41335", "http://192.0.2.1:36119"
#: Listens at a port, as the client server of Ray's head does, which ends if another user listens there.
LISTENER = "import socket, sys, time; kept = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(300)"
STUBS = {
    "ray": '[[ $1 != --version ]] || { echo "ray, version 2.59.0"; exit; }; folder=${2#--temp-dir=}; '
    '[[ "$*" == *--head* ]] || exec sleep 300; '
    f'mkdir "$folder"; printf {ADDRESS} >"$folder/ray_current_cluster"; '
    f'exec {sys.executable} -c "{LISTENER}" "${{3#--ray-client-server-port=}}"',
    "scontrol": "echo localhost; echo node2",
    # Runs on this machine what a node would run.
    "srun": 'line="srun $*"; echo "${line//$\'\\n\'/ }" >>"$SEEN"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "python": f"[[ $PWD == / && ${{!#}} == {ADDRESS} ]] && echo {SERVER}",
    "verl-gsd": 'echo "$RAY_AUTH_TOKEN" >"$SEEN.token"; '
    'echo "verl-gsd $* token=${#RAY_AUTH_TOKEN} mode=$RAY_AUTH_MODE address=${RAY_ADDRESS-unset}" >>"$SEEN"'
    # A job ends after the nodes were asked for, which happens beside it.
    '; until grep -q -- --exclude "$SEEN"; do :; done; exit 7',
}


@pytest.fixture
def slurm(tmp_path):
    """(words) -> (how the script ended, what was called), with stubs for Slurm, Ray and verl-gsd."""
    return lambda *words, **stubs: run_slurm(tmp_path, words, STUBS | stubs)


def run_slurm(tmp_path, words, stubs):
    for name, body in stubs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    seen = tmp_path / "seen"
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        **{"SEEN": str(seen), "RUNS": "/shared/runs", "RAY_ADDRESS": "http://elsewhere:1"},
        **{"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"},
        "SLURM_JOB_NODELIST": "localhost,node2",
    }
    environment.pop("RAY_AUTH_TOKEN", None)
    done = subprocess.run(
        ["bash", ROOT / "scripts/slurm.sh", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    for folder in Path("/tmp").glob(f"ray_{os.getpid()}_*"):  # of the stub for Ray
        shutil.rmtree(folder)
    return done, seen


def test_the_slurm_script_starts_a_head_and_workers_submits_and_ends_with_the_jobs_code(slurm):
    done, seen = slurm("algo=gvpo", "task=arithmetic")
    assert done.returncode == 7, done.stderr
    head, *others, job = sorted(
        seen.read_text().splitlines(), key=lambda line: (line.startswith("verl-gsd"), "--head" not in line)
    )
    assert (
        re.search(r" ray \d{5} --head --port=0 ", head)
        and " --dashboard-port=0 " in head
        and "--nodelist=localhost" in head
    )
    assert len(others) == 1 and f" ray --address={ADDRESS} " in others[0] and "--exclude=localhost" in others[0]
    assert "submit trainer.nnodes=2 trainer.n_gpus_per_node=8 algo=gvpo task=arithmetic" in job
    assert f"--address {SERVER} " in job and "--runs /shared/runs" in job
    assert "token=64 mode=token address=unset" in job
    token = seen.with_suffix(".token").read_text().strip()
    assert len(token) == 64 and token not in done.stdout + done.stderr + seen.read_text()


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["recipe=gvpo/summarisation", "hardware=8xa100_80g"], "hardware.nodes=2 hardware.gpus_per_node=8 recipe"),
        (["hardware=cpu", "algo=gsd"], "trainer.nnodes=2 trainer.n_gpus_per_node=8 hardware=cpu"),
        (["--resume", "/shared/runs/a"], "--resume"),
    ],
)
def test_the_allocations_size_goes_where_the_line_can_still_say_otherwise(slurm, words, size):
    assert f"verl-gsd submit {size}" in slurm(*words)[1].read_text()


def test_a_recipe_for_a_reward_model_fits_the_allocation(compose_fast):
    """Half of the GPUs are the reward model's, which a size of the trainer's would undo."""
    groups = ("recipe=gvpo/summarisation", "hardware=8xa100_80g")
    config, line = compose_fast(*groups, "hardware.nodes=1", "hardware.gpus_per_node=8")
    assert not list(check_memory(config, line))
    assert config.trainer.n_gpus_per_node < 8


@pytest.mark.parametrize("word", ["--no-wait", "--dry-run"])
def test_the_slurm_script_rejects_what_would_end_it_at_once(slurm, word):
    done, seen = slurm("algo=gvpo", "task=arithmetic", word)
    assert done.returncode == 2 and word in done.stderr
    assert not seen.exists(), "nothing was started"


def test_every_node_has_its_session_in_a_folder_that_only_this_user_can_enter(slurm, tmp_path):
    """The stub for srun runs what the nodes run, and the stub for Ray reports the folder."""
    ray = """
if [[ $1 == --version ]]; then echo "ray, version 2.60.0"; exit; fi
folder=${2#--temp-dir=}
stat -c %a "${folder%/ray}" >"$SEEN.mode"
rmdir "${folder%/ray}"
echo "ray $*" >>"$SEEN"
"""
    srun = 'while [[ $1 == --* ]]; do shift; done; "$@"; exit 3'
    done, seen = slurm("algo=gvpo", "task=arithmetic", ray=ray, srun=srun)
    assert done.returncode == 1 and seen.with_suffix(".mode").read_text() == "700\n"
    started = r"ray start --temp-dir=/tmp/ray_\d+_\w{6}/ray --ray-client-server-port=\d+ --head --port=0 "
    assert re.search(started, seen.read_text())


def test_the_ports_of_a_slurm_job_cannot_be_guessed_and_taken_before(slurm):
    """Ray would end at a fixed port of its client server, or have no job server at a fixed port of its agent."""
    ports = set()
    for _ in range(2):
        _, seen = slurm("algo=gvpo", "task=arithmetic")
        head, worker = (line for line in seen.read_text().splitlines()[-3:] if line.startswith("srun"))
        assert "--dashboard-agent-listen-port=0 " in head and "--dashboard-agent-listen-port=0 " in worker
        ports |= set(re.findall(r" ray (\d{5}) --head", head + worker))
    assert len(ports) == 2 and all(20000 <= int(port) < 32000 for port in ports)


def test_a_slurm_job_gets_another_port_if_ray_ends_because_another_user_has_it(slurm):
    """Ray has already written its address when its client server ends, and its other processes with it."""
    once = ': >>"$SEEN.starts"; echo >>"$SEEN.starts"; (($(wc -l <"$SEEN.starts") > 1)) || exit 1; exec '
    done, seen = slurm(
        "algo=gvpo", "task=arithmetic", ray=STUBS["ray"].replace("exec " + sys.executable, once + sys.executable)
    )
    assert done.returncode == 7 and "starting it again with another port" in done.stderr, done.stderr
    ports = re.findall(r" ray (\d{5}) --head", seen.read_text())
    assert len(set(ports)) == len(ports) == 2, "the address of the first was not used"


@as_root
def test_a_listener_of_another_user_at_the_port_is_not_taken_for_rays(slurm):
    """The stub for Ray listens there as that user, and soon ends, as Ray does."""
    other = LISTENER.replace("kept =", "os.seteuid(65534); kept =").replace("import ", "import os, ")
    ray = STUBS["ray"].replace(LISTENER, other.replace("300", "1"))
    done, seen = slurm("algo=gvpo", "task=arithmetic", ray=ray)
    assert done.returncode == 1 and "head on localhost did not come up" in done.stderr
    assert len(re.findall(r" ray \d{5} --head", seen.read_text())) == 3 and "verl-gsd submit" not in seen.read_text()


@pytest.mark.parametrize(("version", "code"), [("2.58.1", 2), ("2.9.3", 2), ("2.59.0", 7), ("2.60.0", 7), ("3.0.0", 7)])
def test_the_slurm_script_rejects_a_ray_that_ignores_the_token(slurm, version, code):
    done, seen = slurm("algo=gvpo", "task=arithmetic", ray=STUBS["ray"].replace("2.59.0", version))
    assert done.returncode == code
    if code == 2:
        assert f"ray, version {version} is installed" in done.stderr and not seen.exists()


@pytest.mark.parametrize("stub", ["srun", "ray"])
def test_a_head_that_does_not_come_up_is_said_so_at_once(slurm, stub):
    """The limit of the test is below the 300 s for which the script waits for a head that is still starting."""
    version = STUBS["ray"].partition("; folder=")[0] if stub == "ray" else ":"
    done, _ = slurm("algo=gvpo", "task=arithmetic", **{stub: f"{version}\necho 'no such partition' >&2; exit 1"})
    assert done.returncode == 1
    assert "no such partition" in done.stderr and "head on localhost" in done.stderr


def test_a_head_without_a_job_server_is_said_so(slurm):
    """Ray's head stays up then."""
    done, seen = slurm("algo=gvpo", "task=arithmetic", python="echo 'no address' >&2; exit 1")
    assert done.returncode == 1
    assert "no address" in done.stderr and "job server of Ray's head on localhost did not come up" in done.stderr
    assert not seen.with_suffix(".token").exists()


#: Fields of ray.io/v1 that KubeRay's custom resource definition (its main branch of August 2026) knows at each place.
#: The whole file was checked against that definition once; these are the parts a test can hold without it.
RAYJOB = {
    "spec": "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
    "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds rayClusterSpec "
    "runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig submitterPodTemplate suspend "
    "ttlSecondsAfterFinished",
    "cluster": "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions headGroupSpec "
    "headServiceAnnotations historyServerOptions managedBy networkPolicy rayVersion suspend tlsOptions upgradeStrategy "
    "workerGroupSpecs",
    "head": "enableIngress headService ingressOptions labels rayStartParams resources serviceType template",
    "workers": "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts priority rayStartParams "
    "replicas resources scaleStrategy suspend template",
}


def test_the_rayjob_has_fields_that_kuberay_knows_and_a_line_that_train_reads():
    job = yaml.safe_load((ROOT / "scripts/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    parts = {"spec": [job["spec"]], "cluster": [cluster], "head": [cluster["headGroupSpec"]]}
    parts["workers"] = cluster["workerGroupSpecs"]
    for name, found in parts.items():
        for part in found:
            assert set(part) <= set(RAYJOB[name].split()), name
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())

    program, command, *words = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("verl-gsd", "train")
    values = dict(word.split("=", 1) for word in words)
    accelerators = sum(int(group["rayStartParams"]["num-gpus"]) * group.get("replicas", 1) for group in groups)
    assert accelerators == int(values["hardware.nodes"]) * int(values["hardware.gpus_per_node"])
    config = resolve(compose_config(parse_line(words)))
    assert config.trainer.nnodes * config.trainer.n_gpus_per_node == accelerators
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False}
        for amounts in container["resources"].values():
            assert amounts["nvidia.com/gpu"] == group["rayStartParams"]["num-gpus"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts.values())
        for place in (config.trainer.default_local_dir, config.data.train_files, config.data.val_files):
            assert any(place.startswith(f"{path}/") for path in mounts)
        assert "env" not in container, "secrets come from a Secret"
