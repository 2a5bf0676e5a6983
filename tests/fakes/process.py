"""The fake engine as a process, for tests that kill one."""

import argparse
import signal

import trio

from tests.fakes.engine import MODEL, open_engine
from tests.fakes.script import behaviour_from_json


async def _serve(args: argparse.Namespace) -> None:
    async with open_engine(model=args.model, max_num_seqs=args.max_num_seqs) as engine:
        if args.behaviour:
            engine.script.default = behaviour_from_json(args.behaviour)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            if args.uds:
                await engine.listen_unix(args.uds)
                print(f"unix:{args.uds}", flush=True)
            else:
                print(await engine.listen_tcp(args.host, args.port), flush=True)
            async for _ in signals:
                return


def main() -> None:
    """Serve until SIGTERM or SIGINT. The first line of output is the base URL: from then on it accepts."""
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.engine", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--uds", help="path of a Unix socket, instead of a port")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--max-num-seqs", type=int)
    parser.add_argument("--behaviour", help='how every request is served, e.g. {"token_interval_s": 0.01}')
    trio.run(_serve, parser.parse_args())
