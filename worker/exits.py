"""Exit statuses by which a child tells its supervisor what happened."""

DONE = 0
"""The job has ended, and the child has written its state."""
UNAVAILABLE = 69
"""The database or the object store did not answer (EX_UNAVAILABLE): the job is not to blame."""
IO_ERROR = 74
"""A file could not be read or written (EX_IOERR), as with a full disk, or a job that is too large for it."""
STOPPED = 75
"""Asked to stop: the checkpoint is written, the job's state is the supervisor's to settle (EX_TEMPFAIL)."""
