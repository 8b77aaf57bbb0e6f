"""Exit statuses by which a child tells its supervisor what happened."""

DONE = 0
"""The job has ended, and the child has written its state."""
STOPPED = 75
"""Asked to stop: the checkpoint is written, the job's state is the supervisor's to settle (EX_TEMPFAIL)."""
