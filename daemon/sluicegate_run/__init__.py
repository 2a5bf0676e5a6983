"""The embedded engine: `sluicegate run` prepares a vLLM, starts it behind the gateway and asks it one question.

    prepare(cache, progress) -> EnginePaths      a whole engine in the cache, made now or long ago (prepare.py)
    EmbeddedEngine(paths)                        that engine running, for as long as a `with` lasts (engine.py)

For tests that want the real vLLM:

    paths = prepare(default_cache(os.environ), for_stream(sys.stderr))
    with EmbeddedEngine(paths) as engine:
        engine.wait_ready()
        ...  # engine.base_url, engine.pid, engine.kill()
"""
