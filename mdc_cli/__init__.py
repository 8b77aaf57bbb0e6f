"""The command `mdc`: condense on this machine, run the service, or use one."""
