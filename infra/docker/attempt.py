#!/opt/venv/bin/python
"""One attempt of a RayJob:  attempt COMMAND…   What another cluster would not cure is not attempted again.

KubeRay 1.7 knows one limit, `backoffLimit`, and begins every failed job again on a new cluster, a misspelt recipe as well as a lost head;
only a job that was *stopped* is over at once. So where the command ends with one of the codes below, this has its own job stopped: it
stands as STOPPED, its log says why and with which code, and nothing is begun again. Any other end is left as it is.
"""

import json
import os
import signal
import subprocess
import sys
import time

FINAL = {
    2: "the recipe or the command is wrong",
    3: "promotion was refused",
    4: "verification failed",
    10: "the workload's code raised",
    11: "out of memory",
    13: "the data",
    14: "training diverged",
}
"""Exit codes of `raylway` that would come again. Not 12 (cluster or storage), nor the codes of signals."""
_STOP_SECONDS = 60


def main(command: list[str]) -> int:
    # Ray sends SIGTERM to a job's whole family; the command ends in its own way, and this after it
    signal.signal(signal.SIGTERM, lambda *_: None)
    code = subprocess.run(command).returncode
    code = 128 - code if code < 0 else code
    if code in FINAL and (job := own_job()):
        print(
            f"exit code {code} ({FINAL[code]}): it would come again, so this job is stopped and not begun again",
            file=sys.stderr,
            flush=True,
        )
        stop(job)
    return code


def own_job() -> str | None:
    """The submission id of the Ray job that this process belongs to; None outside of one."""
    return json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata", {}).get("job_submission_id")


def stop(job: str) -> None:
    """Ask Ray to stop this job, and be there to be stopped: to end before would be to fail."""
    from ray.job_submission import JobSubmissionClient

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    JobSubmissionClient(os.environ["RAY_ADDRESS"]).stop_job(job)
    time.sleep(_STOP_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
