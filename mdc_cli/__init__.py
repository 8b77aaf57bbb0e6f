"""The `mdc` command: condense on this machine, run the service, talk to one."""
