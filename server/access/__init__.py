"""Authentication, scopes, rate limits and quotas."""
