"""The HTTP service: jobs are accepted, condensed sets are delivered. Never imports torch or the worker."""
