"""Bodies of requests and responses, a module per noun."""
