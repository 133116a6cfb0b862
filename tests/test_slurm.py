"""The logic of the SLURM scripts, with stand-ins for SLURM's own commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "scripts/slurm"
SCRIPT = FOLDER / "train.sbatch"
STAND_INS = {
    # runs the command once for each task, and exits with the largest status
    "srun": """shift; most=0
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "$@" || { s=$?; [ $s -gt $most ] && most=$s; }
done
exit $most""",
    "scontrol": 'if [ "$1" = show ]; then printf "first\\nsecond\\n"; else echo "$@" >>called; fi',
    "lors": """echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $*" >>started
statuses=($STATUS)
exit ${statuses[$RANK]}""",
}


@pytest.mark.parametrize(
    ("statuses", "status", "requeued"),
    [
        ("0 0 0 0", 0, False),
        ("2 2 2 2", 2, False),
        ("130 130 130 130", 130, True),
        ("130 1 130 130", 1, False),  # three were stopped because one failed
    ],
)
def test_a_training_goes_back_into_the_queue_when_it_was_interrupted(
    tmp_path: Path, statuses: str, status: int, requeued: bool
) -> None:
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    for name, text in STAND_INS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "first,second",
        "SLURM_NTASKS": "4",
        "SLURM_NNODES": "2",
        "STATUS": statuses,
    }
    done = subprocess.run(["bash", str(SCRIPT), "config.yaml", "train.rank=8"], env=environment, capture_output=True)
    assert done.returncode == status
    started = (tmp_path / "started").read_text().splitlines()
    assert started == [f"{rank}/4 {rank % 2}/2 first:24711 train config.yaml train.rank=8" for rank in range(4)]
    called = tmp_path / "called"
    assert called.exists() == requeued
    assert not requeued or called.read_text() == "requeue 4711\n"


@pytest.mark.parametrize("script", ["run", "sweep"])
@pytest.mark.parametrize(("ends", "status", "requeued"), [("stopped", 130, True), ("failed", 1, False)])
def test_a_job_whose_time_is_over_goes_back_into_the_queue(
    tmp_path: Path, script: str, ends: str, status: int, requeued: bool
) -> None:
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    waits = "trap 'sleep 0.2; exit 130' TERM; touch started; while true; do sleep 0.05; done"
    work = waits if ends == "stopped" else "exit 1"
    for name, text in {
        "scontrol": 'echo "$@" >>called',
        "lors": f'case "$*" in *--dry-run*) exit 0 ;; esac; {work}',
    }.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    own = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3"}
    job = subprocess.Popen(["bash", str(FOLDER / f"{script}.sbatch"), "some.yaml"], env={**os.environ, **own})
    if ends == "stopped":
        deadline = time.monotonic() + 30
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
    assert job.wait(30) == status
    assert (tmp_path / "called").exists() == requeued


def test_every_script_can_go_back_into_the_queue() -> None:
    for path in FOLDER.glob("*.sbatch"):
        text = path.read_text()
        assert "#SBATCH --requeue" in text, path
        assert "#SBATCH --signal=" in text, path
        assert 'scontrol requeue "$SLURM_JOB_ID"' in text, path
