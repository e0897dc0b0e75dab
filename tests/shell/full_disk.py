"""Writes to a store until no file may grow any more: `python -m tests.shell.full_disk PATH`; prints what came of it."""

import json
import resource
import signal
import sys
from pathlib import Path

from streams.store import RocksStore
from tests.shell.test_datadir import LOG, NOW_MS

QUOTA_BYTES = 200_000


def main() -> int:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (QUOTA_BYTES, QUOTA_BYTES))
    store = RocksStore(Path(sys.argv[1]), block_cache_bytes=1 << 20, now_ms=lambda: NOW_MS)
    written = 0
    try:
        for logged in LOG:
            store.restore(logged.changes, logged.end)
            written = logged.end
    except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
        sys.stdout.write(json.dumps({"written": written, "error": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
