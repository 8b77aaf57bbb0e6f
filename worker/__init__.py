"""Workers: claim jobs from the database, run each attempt in a child process, publish the result."""
