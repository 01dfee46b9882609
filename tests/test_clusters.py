"""The README's commands and recipes for several processes are run, word for word but for the config."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from grok_lightning.records import read_record

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"<!-- ((?:torchrun|sbatch).*?) -->\n```(?:bash)?\n(.*?)```", README, flags=re.DOTALL))

CONFIG = """
model: {class_path: MLP, init_args: {hidden: [16]}}
data: {class_path: TableData, init_args: {task: {class_path: SparseParity, init_args: {n: 8, k: 2}}, train_size: 60}}
population: {seed: [0, 1, 2]}
trainer: {max_steps: 60, val_check_interval: 1, callbacks: {class_path: WeightTrajectory, init_args: SPARSE}}
""".replace("SPARSE", "{schedule: {class_path: EveryNSteps, init_args: {n: 20}}}")

SRUN = """#!/bin/bash
# As many tasks as the job has, told who they are; the largest exit code is its own. A signal is for all of them.
# Its own options count for nothing.
echo $$ > srun.pid
while [[ "$1" = --* ]]; do shift; done
pids=()
trap 'kill -TERM "${pids[@]}"' TERM
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$task SLURM_LOCALID=$((task % SLURM_NTASKS_PER_NODE)) SLURM_NODEID=$((task / SLURM_NTASKS_PER_NODE)) \\
    "$@" & pids+=($!)
done
code=0
for pid in "${pids[@]}"; do
  while kill -0 "$pid" 2> /dev/null; do wait "$pid"; result=$?; done
  [ "$result" -gt "$code" ] && code=$result
done
exit $code
"""

SLURM = {
    "SLURM_JOB_ID": "20701",
    "SLURM_JOB_NAME": "grok",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NODELIST": "127.0.0.1",
    "SLURM_CPUS_PER_TASK": "1",
}


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A directory with a small config in the place of the README's, and commands that find this Python first."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "parity.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{kept['PATH']}"
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1"}


def run(script, environment, code=0):
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def assert_finished(directory, devices):
    attributes = read_record(directory / "records.nc").attrs
    assert attributes["status"] == "finished"
    assert (attributes["n_members"], attributes["devices"], attributes["last_step"]) == (3, devices, 60)
    assert (directory / "report.html").is_file()
    assert sorted(path.name for path in directory.parent.iterdir()) == ["version_0"]


@pytest.mark.parametrize("strategy", ["population", "ddp"])
def test_processes_that_lightning_starts(tmp_path, environment, strategy):
    (command,) = re.findall(rf"^python -m grok_lightning fit .*--trainer.strategy {strategy} .*$", README, flags=re.M)
    run(command, environment)
    assert_finished(tmp_path / "runs" / "parity" / "version_0", devices=2)


def test_torchrun_on_one_machine(tmp_path, environment):
    run(BLOCKS["torchrun: one machine"], environment)
    assert_finished(tmp_path / "runs" / "parity" / "version_0", devices=2)


def test_torchrun_on_two_machines(tmp_path, environment):
    """Which are two agents of this one."""
    first = BLOCKS["torchrun: two machines"].strip().replace("29500", "29612")
    second = first.replace("--node-rank 0", "--node-rank 1")
    assert second != first
    run(f"{second} > second.log 2>&1 &\n{first} || exit 1\nwait", environment)
    assert_finished(tmp_path / "runs" / "parity" / "version_0", devices=2)


def test_the_job_has_no_more_devices_than_its_config_has_members():
    asked = {name: int(number) for name, number in re.findall(r"#SBATCH --(\S+?)=(\d+)$", BLOCKS["sbatch"], flags=re.M)}
    config = yaml.safe_load((ROOT / re.findall(r"--config (\S+)", BLOCKS["sbatch"])[0]).read_text())
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["nodes"] * asked["ntasks-per-node"] <= len(config["population"]["seed"])


def test_a_job_that_is_out_of_time_goes_on_where_it_was(tmp_path, environment):
    (tmp_path / "bin").mkdir()
    for name, script in [("srun", SRUN), ("scontrol", "#!/bin/bash\necho $* >> requeued")]:
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    # A neighbour's run, newer than any of the job's own, is none of its business.
    neighbour = tmp_path / "runs" / "parity-20702" / "version_0" / "checkpoints"
    neighbour.mkdir(parents=True)
    torch.save({"state_dict": {}, "global_step": 50}, neighbour / "last.ckpt")
    (tmp_path / "job").write_text(BLOCKS["sbatch"])
    own = tmp_path / "runs" / "parity-20701" / "version_0"

    long = CONFIG.replace("max_steps: 60", "max_steps: 1000000")
    (tmp_path / "configs" / "parity.yaml").write_text(long)
    job = subprocess.Popen(["bash", "job"], env=environment | SLURM, start_new_session=True)
    deadline = time.monotonic() + 200
    while not (own / "weights" / "step_0000000020.pt").exists():
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # Its steps get the signal, not the script itself.
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
    assert job.wait(timeout=200) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 20701\n"
    stopped = read_record(own / "records.nc").attrs
    assert stopped["status"] == "interrupted"
    reached = int(torch.load(own / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])
    assert reached == stopped["last_step"] >= 20

    # Another 20 steps, whatever number it came to.
    (tmp_path / "configs" / "parity.yaml").write_text(CONFIG.replace("max_steps: 60", f"max_steps: {reached + 20}"))
    run("bash job", environment | SLURM)
    attributes = read_record(own / "records.nc").attrs
    assert (attributes["status"], attributes["last_step"]) == ("finished", reached + 20)
    assert sorted(path.name for path in own.parent.iterdir()) == ["version_0"]
    steps = read_record(own / "records.nc")["curves"]["step"].values.tolist()
    assert steps == list(range(reached + 21))
    assert (tmp_path / "requeued").read_text().count("requeue") == 1
