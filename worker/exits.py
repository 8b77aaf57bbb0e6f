"""Exit statuses of the child process that runs an attempt."""

DONE = 0
"""The job has ended and the child has recorded its state, or another attempt holds the job."""
UNAVAILABLE = 69
"""The database or the object store did not answer (EX_UNAVAILABLE). It does not count against the job."""
IO_ERROR = 74
"""A file could not be read or written (EX_IOERR), for example because the disk is full."""
STOPPED = 75
"""Stopped on request (EX_TEMPFAIL): the checkpoint is written, and the supervisor records the job's state."""
