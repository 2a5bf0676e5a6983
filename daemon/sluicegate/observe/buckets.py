"""Histogram buckets, made for language models: prometheus_client's own end at 10 s, where a long answer only begins.

Each upper bound costs one line per label set at every scrape, so there are 15 to 18 of them, about a factor of two
apart where the answers lie. The default timeouts (60, 120 and 300 s) and the usual goals for goodput (TTFT 2 s, 150 ms
a token) are bounds themselves: the share of requests that kept them is then read off exactly, not interpolated.
"""

#: Whole request at the engine, in seconds: an embedding takes milliseconds, a long answer minutes.
LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

#: Waiting for a slot, in seconds: a free slot takes microseconds, QUEUE_TIMEOUT_S is 120 by default.
QUEUE_WAIT_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)

#: Time to first token, in seconds, as the client sees it: prefill of a short prompt up to a full queue.
FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60, 120, 300)

#: Mean gap between two tokens of a stream, in seconds: 2 ms is a small model on a fast GPU, 150 ms is reading speed.
INTER_TOKEN_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)

#: Tokens per second that one request got from the engine.
TOKENS_PER_S = (1, 2.5, 5, 7.5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)
