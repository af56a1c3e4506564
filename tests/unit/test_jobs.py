"""jobs/: scripts and manifests for clusters, with stand-ins for tumorscan and for the schedulers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from engine.app import whole_app
from tests.tools import tool

JOBS = Path(__file__).resolve().parents[2] / "jobs"
SCRIPTS = sorted([*JOBS.glob("*.sh"), *JOBS.glob("*.sbatch")])
MANIFESTS = sorted((JOBS / "kubernetes").glob("*.yaml"))
# The oldest that has what they use, and a newer one.
KUBERNETES = ("1.33", "1.36")
FINISHED_WITH_A_LIST, OUT_OF_TIME, TOLD_TO_STOP = 4, 75, 143


def run(
    script: str, *words: str | Path, path: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A script of jobs/, with the programs in `path` before all others."""
    search = f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]
    return subprocess.run(
        ["bash", str(JOBS / script), *map(str, words)],
        env={**os.environ, "PATH": search, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def stand_in(folder: Path, name: str, body: str) -> Path:
    """A program `name` that writes its arguments to NAME.log, one a line, and then does `body`."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >>{folder}/{name}.log\n{body}\n')
    program.chmod(0o755)
    return folder


def logged(folder: Path, name: str) -> list[str]:
    log = folder / f"{name}.log"
    return log.read_text().splitlines() if log.exists() else []


# All scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_can_be_started(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run([tool("shellcheck"), *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.stdout == ""


def test_options_in_the_files_are_options_of_score() -> None:
    calls = [*re.findall(r"tumorscan score(.*?)(?:\n[a-z]|\|\||$)", script("slurm.sbatch"), re.DOTALL)]
    calls += re.findall(r"^tumorscan score (.*)$", script("shard.sh"), re.MULTILINE)
    calls += re.findall(r"jobs/shard\.sh (.*)\"$", script("ngc-base-command.sh"), re.MULTILINE)
    calls += [" ".join(container()["args"])]
    used = {option for call in calls for option in re.findall(r"(?<!\S)--[a-z-]+", call)}
    assert {"--shard", "--out", "--backend", "--max-runtime"} <= used
    assert used - options("score") == set()


def test_every_scheduler_has_a_merge_of_what_its_jobs_write() -> None:
    (merging,) = job("merge.yaml")["spec"]["template"]["spec"]["containers"]
    texts = [merging["args"][-1], script("slurm-merge.sbatch"), script("ngc-base-command.sh")]
    for text in texts:
        (line,) = re.findall(r"tumorscan merge (\S+)/\* (--out \S+?)(?= |'|$)", text, re.MULTILINE)
        assert line[0].endswith("/results/shards")
        assert line[1].startswith(f"--out {line[0].removesuffix('/shards')}/")
    assert "--out" in options("merge")


def options(command: str) -> set[str]:
    group = typer.main.get_group(whole_app())
    return {option for parameter in group.commands[command].params for option in parameter.opts}


def script(name: str) -> str:
    return (JOBS / name).read_text()


# shard.sh


def test_a_job_scores_its_shard_into_its_folder(tmp_path: Path) -> None:
    programs = stand_in(tmp_path / "bin", "tumorscan", "exit 0")
    done = run("shard.sh", "3", "16", "/results", "/data", "--backend", "tensorrt", path=programs)
    assert done.returncode == 0
    assert logged(programs, "tumorscan") == [
        *("score", "/data", "--backend", "tensorrt"),
        *("--shard", "4/16", "--out", "/results/4"),
    ]


@pytest.mark.parametrize("words", [(), ("0", "4", "/results"), ("x", "4", "/results", "/data")])
def test_a_job_without_its_words_is_told_which(tmp_path: Path, words: tuple[str, ...]) -> None:
    programs = stand_in(tmp_path / "bin", "tumorscan", "exit 0")
    done = run("shard.sh", *words, path=programs)
    assert done.returncode == 2
    assert "usage: shard.sh INDEX COUNT RESULTS INPUT" in done.stderr
    assert logged(programs, "tumorscan") == []


@pytest.mark.parametrize("status", [0, 1, 2, 3, OUT_OF_TIME, 130, TOLD_TO_STOP])
def test_a_job_ends_as_tumorscan_does(tmp_path: Path, status: int) -> None:
    programs = stand_in(tmp_path / "bin", "tumorscan", f"exit {status}")
    assert run("shard.sh", "0", "4", "/results", "/data", path=programs).returncode == status


def test_quarantined_slices_are_a_success_that_is_told(tmp_path: Path) -> None:
    programs = stand_in(tmp_path / "bin", "tumorscan", f"exit {FINISHED_WITH_A_LIST}")
    done = run("shard.sh", "0", "4", "/results", "/data", path=programs)
    assert done.returncode == 0
    assert "/results/1/errors.csv" in done.stderr


@pytest.mark.parametrize("status", [TOLD_TO_STOP, 0, FINISHED_WITH_A_LIST])
def test_a_signal_is_handed_on_once_and_the_run_is_waited_for(tmp_path: Path, status: int) -> None:
    body = f'trap "echo told >>{tmp_path}/told; sleep 0.5; exit {status}" TERM; touch {tmp_path}/ready\n'
    programs = stand_in(tmp_path / "bin", "tumorscan", body + "while :; do sleep 0.05; done")
    part = subprocess.Popen(
        ["bash", str(JOBS / "shard.sh"), "0", "4", "/results", "/data"],
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < until:
        time.sleep(0.02)
    part.send_signal(signal.SIGTERM)
    assert part.wait(30) == (0 if status == FINISHED_WITH_A_LIST else status)
    assert (tmp_path / "told").read_text() == "told\n"


def test_a_signal_that_comes_before_the_run_has_a_number_is_handed_on_too(tmp_path: Path) -> None:
    programs = stand_in(tmp_path / "bin", "tumorscan", "exec sleep 20")
    early = tmp_path / "early.sh"
    early.write_text("trap 'if [[ $BASH_COMMAND == \"scoring=\\$!\" ]]; then kill -TERM $$; fi' DEBUG\n")
    done = run("shard.sh", "0", "4", "/results", "/data", path=programs, BASH_ENV=str(early))
    assert (done.returncode, done.stderr) == (TOLD_TO_STOP, "")


# Slurm


def slurm(tmp_path: Path, status: int, **variables: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    programs = stand_in(tmp_path / "bin", "srun", f"exit {status}")
    stand_in(programs, "scontrol", "exit 0")
    settings = {
        "DATA": "/scratch/slices",
        "WORK": str(tmp_path / "work"),
        "IMAGE": "/images/tumorscan.sqsh",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_ARRAY_TASK_COUNT": "4",
        "SLURM_ARRAY_JOB_ID": "77",
    }
    return run("slurm.sbatch", path=programs, **{**settings, **variables}), programs


def test_slurm_mounts_the_input_read_only_and_keeps_plans(tmp_path: Path) -> None:
    done, programs = slurm(tmp_path, 0)
    assert done.returncode == 0
    words = logged(programs, "srun")
    (mounts,) = [word for word in words if word.startswith("--container-mounts=")]
    work = tmp_path / "work"
    assert mounts.removeprefix("--container-mounts=").split(",") == [
        "/scratch/slices:/data:ro",
        f"{work}/results:/results",
        f"{work}/plans:/plans",
    ]
    assert words[words.index("--shard") + 1] == "2/4"
    assert words[words.index("--out") + 1] == "/results/shards/2"


def test_slurm_can_run_single_shards_again(tmp_path: Path) -> None:
    _, programs = slurm(tmp_path, 0, SLURM_ARRAY_TASK_COUNT="1", SHARDS="4")
    words = logged(programs, "srun")
    assert words[words.index("--shard") + 1] == "2/4"


@pytest.mark.parametrize(("status", "ended"), [(0, 0), (FINISHED_WITH_A_LIST, 0), (2, 2), (3, 3)])
def test_slurm_merges_and_takes_a_list_for_a_success(tmp_path: Path, status: int, ended: int) -> None:
    programs = stand_in(tmp_path / "bin", "srun", f"exit {status}")
    settings = {"WORK": str(tmp_path / "work"), "IMAGE": "/images/tumorscan.sqsh"}
    done = run("slurm-merge.sbatch", path=programs, **settings)
    assert done.returncode == ended
    assert ("errors.csv" in done.stdout) == (status == FINISHED_WITH_A_LIST)


@pytest.mark.parametrize("status", [OUT_OF_TIME, TOLD_TO_STOP])
def test_slurm_takes_an_unfinished_shard_back_into_the_queue(tmp_path: Path, status: int) -> None:
    done, programs = slurm(tmp_path, status)
    assert done.returncode == 0
    assert logged(programs, "scontrol") == ["requeue", "77_2"]


@pytest.mark.parametrize(
    ("status", "ended"), [(0, 0), (FINISHED_WITH_A_LIST, 0), (1, 1), (2, 2), (3, 3), (137, 137)]
)
def test_slurm_queues_nothing_else_again(tmp_path: Path, status: int, ended: int) -> None:
    done, programs = slurm(tmp_path, status)
    assert done.returncode == ended
    assert logged(programs, "scontrol") == []


def test_slurm_does_not_requeue_for_ever(tmp_path: Path) -> None:
    done, programs = slurm(tmp_path, OUT_OF_TIME, SLURM_RESTART_COUNT="50")
    assert done.returncode == OUT_OF_TIME
    assert logged(programs, "scontrol") == []


def test_slurm_names_what_is_not_set(tmp_path: Path) -> None:
    done, programs = slurm(tmp_path, 0, DATA="")
    assert done.returncode != 0
    assert "DATA" in done.stderr
    assert logged(programs, "srun") == []


def test_runs_end_in_order_before_their_job_is_ended() -> None:
    hours, minutes, _ = re.findall(r"--time=(\d+):(\d+):(\d+)", script("slurm.sbatch"))[0]
    (runs,) = re.findall(r"--max-runtime (\d+)m", script("slurm.sbatch"))
    assert 60 * int(hours) + int(minutes) - int(runs) >= 10
    (seconds,) = re.findall(r"--total-runtime (\d+)s", script("ngc-base-command.sh"))
    (runs,) = re.findall(r"--max-runtime (\d+)m", script("ngc-base-command.sh"))
    assert int(seconds) / 60 - int(runs) >= 10


# NGC Base Command


def test_base_command_gets_a_job_a_shard(tmp_path: Path) -> None:
    programs = stand_in(tmp_path / "bin", "ngc", "exit 0")
    settings = dict.fromkeys(("ACE", "INSTANCE", "IMAGE", "DATASET", "WORKSPACE"), "x")
    assert run("ngc-base-command.sh", "3", path=programs, **settings).returncode == 0
    words = logged(programs, "ngc")
    names = [words[at + 1] for at, word in enumerate(words) if word == "--name"]
    lines = [words[at + 1] for at, word in enumerate(words) if word == "--commandline"]
    assert names == ["tumorscan-1", "tumorscan-2", "tumorscan-3"]
    assert [line.split()[:3] for line in lines] == [
        ["/opt/tumorscan/jobs/shard.sh", str(n), "3"] for n in range(3)
    ]


@pytest.mark.parametrize("parts", ["", "0", "all"])
def test_base_command_asks_for_a_number_of_shards(tmp_path: Path, parts: str) -> None:
    programs = stand_in(tmp_path / "bin", "ngc", "exit 0")
    assert run("ngc-base-command.sh", parts, path=programs).returncode == 2
    assert logged(programs, "ngc") == []


# Kubernetes


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((JOBS / "kubernetes" / name).read_text()))


def job(name: str) -> dict[str, Any]:
    (only,) = documents(name)
    return only


def container() -> dict[str, Any]:
    (only,) = job("score.yaml")["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_valid(manifest: Path, version: str) -> None:
    line = [tool("kubernetes-validate"), "--strict", "--kubernetes-version", version, str(manifest)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_a_shard_for_every_index_and_both_jobs_are_of_one_image() -> None:
    (merging,) = job("merge.yaml")["spec"]["template"]["spec"]["containers"]
    spec = job("score.yaml")["spec"]
    assert int(container()["args"][2]) == spec["completions"] == spec["parallelism"]
    assert f"{container()['args'][3]}/*" in merging["args"][-1]
    assert merging["image"] == container()["image"]


@pytest.mark.parametrize(("status", "ended"), [(0, 0), (FINISHED_WITH_A_LIST, 0), (2, 1), (3, 1)])
def test_a_merge_with_a_list_is_a_success(tmp_path: Path, status: int, ended: int) -> None:
    (merging,) = job("merge.yaml")["spec"]["template"]["spec"]["containers"]
    programs = stand_in(tmp_path / "bin", "tumorscan", f"exit {status}")
    search = {"PATH": f"{programs}:{os.environ['PATH']}"}
    assert subprocess.run(merging["args"], env={**os.environ, **search}).returncode == ended


def test_statuses_are_treated_as_they_are_meant() -> None:
    actions = {
        status: rule["action"]
        for rule in job("score.yaml")["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
        for status in rule["onExitCodes"]["values"]
    }
    assert actions == {OUT_OF_TIME: "Ignore", TOLD_TO_STOP: "Ignore", 2: "FailIndex"}


def test_pods_keep_the_entry_point_the_read_only_input_and_the_plans() -> None:
    assert "command" not in container()
    mounts = {mount["mountPath"]: mount for mount in container()["volumeMounts"]}
    assert set(mounts) == {"/data", "/results", "/plans"}
    assert mounts["/data"]["readOnly"]
    assert container()["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_a_pod_has_the_time_that_tumorscan_needs_to_stop() -> None:
    longest = 17  # seconds, docs/errors.md
    assert job("score.yaml")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 2 * longest


def test_programs_named_in_the_jobs_are_in_the_image() -> None:
    dockerfile = (JOBS.parent / "Dockerfile.gpu").read_text()
    (line,) = re.findall(r"^COPY (jobs/.*) /opt/tumorscan/jobs/$", dockerfile, re.MULTILINE)
    text = "".join(path.read_text() for path in [*SCRIPTS, *MANIFESTS])
    assert set(re.findall(r"/opt/tumorscan/(jobs/[\w.-]+)", text)) == set(line.split())
