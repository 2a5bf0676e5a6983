"""`sluicegate run`: prepare a vLLM in the cache, start it behind the gateway and ask it one question.

It works in a checkout only: no part of it is in the wheel that is deployed.

    prepare(cache, progress) -> EnginePaths                    a complete engine in the cache (prepare.py)
    EmbeddedEngine(paths, address, log=..., environ=...)       that engine, running while a `with` lasts (engine.py)

For tests that want the real vLLM:

    paths = prepare(default_cache(os.environ), Progress(sys.stderr))
    with EmbeddedEngine(paths, Path("/tmp/engine.sock"), log=Path("/tmp/engine.log"), environ=os.environ) as engine:
        engine.wait_ready()
        ...  # engine.base_url, engine.program.pid, engine.program.kill()
"""
