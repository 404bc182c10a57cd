"""A Ray Serve handle call for the cost part of the cluster benchmark: run by an interpreter that has ray[serve], and nothing
of hasfaas. Each line of standard input is [bytes, callers, seconds]; each answer a line of the latencies in us."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

READY = "ready"


def main() -> None:
    """Serves an identity function, and calls it as it is told."""
    import ray  # type: ignore[import-not-found,unused-ignore]
    from ray import serve  # type: ignore[import-not-found,unused-ignore]

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)

    @serve.deployment(max_ongoing_requests=100)  # type: ignore[untyped-decorator,unused-ignore]
    class Identity:
        def __call__(self, x: Any) -> Any:
            return x

    deployed: Any = Identity
    handle = serve.run(deployed.bind())
    print(json.dumps(READY), flush=True)
    for line in sys.stdin:
        size, callers, seconds = json.loads(line)
        print(json.dumps(asyncio.run(_latencies(handle, size, callers, seconds))), flush=True)
    serve.shutdown()
    ray.shutdown()


async def _latencies(handle: Any, size: int, callers: int, seconds: float) -> list[float]:
    body = os.urandom(size)
    for _ in range(10):
        await handle.remote(body)
    found: list[float] = []
    end_s = time.perf_counter() + seconds

    async def loop() -> None:
        while (began_s := time.perf_counter()) < end_s:
            await handle.remote(body)
            found.append((time.perf_counter() - began_s) * 1e6)

    await asyncio.gather(*(loop() for _ in range(callers)))
    return found


if __name__ == "__main__":
    main()
