"""Runs jobs with the client that was generated from a node's /openapi.json.

Usage: client.py URL TOKEN, with the folder of the package quorun_client on PYTHONPATH.
"""

import sys
from uuid import UUID

from quorun_client import AuthenticatedClient
from quorun_client.api.jobs import cancel_job, get_job, list_jobs, submit_job
from quorun_client.api.languages import get_language
from quorun_client.api.many import submit_batch, wait_for_jobs
from quorun_client.models import (
    Batch,
    Include,
    Job,
    JobList,
    JobState,
    Language,
    Limits,
    Problem,
    Submission,
    TestCase,
    Verdict,
    WaitForJobs,
)

url, token = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=token, raise_on_unexpected_status=True)

# Submit, wait, read the result.
hello = Submission(language="bash", source="read name; echo hello $name", stdin="world\n", labels=["client"])
job = submit_job.sync(client=client, body=hello, wait=60, idempotency_key="first")
assert isinstance(job, Job), job
assert job.state == JobState.FINISHED and job.verdict == Verdict.ACCEPTED, job
assert job.stdout == "hello world\n" and job.exit_code == 0, job
assert job.finished_at >= job.submitted_at, job

# A retry joins it.
again = submit_job.sync_detailed(client=client, body=hello, wait=60, idempotency_key="first")
assert again.status_code == 200 and again.parsed.id == job.id, again
assert again.headers["Location"] == f"/v1/jobs/{job.id}", again

# Without waiting, and waited for afterwards.
slow = submit_job.sync(client=client, body=Submission(language="bash", source="sleep 0.2; exit 3"))
assert isinstance(slow, Job) and isinstance(slow.id, UUID), slow
slow = get_job.sync(slow.id, client=client, wait=60)
assert slow.verdict == Verdict.RUNTIME_ERROR and slow.exit_code == 3, slow

# A program that is judged.
judged = Submission(
    language="bash",
    source="read a b; echo $((a + b))",
    tests=[TestCase(stdin="1 2", expected="3"), TestCase(name="wrong", stdin="2 2", expected="5", weight=3, hidden=True)],
    limits=Limits(cpu_ms=1500),
)
judged = submit_job.sync(client=client, body=judged, wait=60)
assert judged.verdict == Verdict.WRONG_ANSWER and judged.score == 0.25, judged
assert [test.verdict for test in judged.tests] == [Verdict.ACCEPTED, Verdict.WRONG_ANSWER], judged
judged = get_job.sync(judged.id, client=client, include=Include.TESTS)
assert judged.tests[1].expected == "5" and judged.tests[1].weight == 3, judged

# Many.
batch = submit_batch.sync(client=client, body=Batch(jobs=[hello, Submission(language="bash", source="echo two")]))
assert batch.accepted == 2 and batch.refused == 0, batch
ids = [item.job.id for item in batch.jobs]
waited = wait_for_jobs.sync(client=client, body=WaitForJobs(ids=ids, timeout_s=60))
assert waited.done and [one.id for one in waited.jobs] == ids, waited
listed = list_jobs.sync(client=client, state=[JobState.FINISHED], label=["client"], limit=10)
assert isinstance(listed, JobList) and job.id in [one.id for one in listed.jobs], listed

# A language.
bash = get_language.sync("bash", client=client)
assert isinstance(bash, Language) and bash.offered, bash

# Errors have a type, too.
problem = submit_job.sync(client=client, body=Submission(language="cobol", source="x"))
assert isinstance(problem, Problem), problem
assert problem.type_ == "urn:quorun:error:unknown-language" and problem.status == 404, problem
assert "bash" in problem["languages"], problem
problem = submit_job.sync(client=client, body=Submission(language="bash", source="x", limits=Limits(cpu_ms=10**9)))
assert problem.field == "limits.cpu_ms" and problem.value == 10**9 and problem.limit < 10**9, problem
problem = cancel_job.sync(job.id, client=client)
assert problem.type_ == "urn:quorun:error:already-finished", problem
stranger = AuthenticatedClient(base_url=url, token="quorun_unknown")
problem = list_jobs.sync(client=stranger)
assert isinstance(problem, Problem) and problem.status == 401, problem

print("ok")
