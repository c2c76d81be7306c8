"""What dialects share at the edge: the dialect record, bodies, authentication, rate limits, metrics."""
