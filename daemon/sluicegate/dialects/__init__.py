"""What the OpenAI and Anthropic protocols say, in bytes: request facts, events, usage, ends and errors. Pure."""
