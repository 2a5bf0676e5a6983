"""What the OpenAI and Anthropic protocols say, in bytes: routes, request facts, SSE framing, error bodies. Pure."""
