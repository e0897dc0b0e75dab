"""`make chaos [KILLS=n] [SEED=s] [ARGS=--json]`: nothing lost, nothing twice, under faults, on a real Apache Kafka."""

import argparse
import json
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.chaos.lane import Lane
from tests.chaos.plan import plan
from tests.chaos.proxy import Network, Proxy
from tests.chaos.views import Verdict
from tests.kafka_cluster import KafkaCluster, missing


def run(seed: int, kills: int, lanes: int, directory: Path, *, brokers: int = 1) -> dict[str, Any]:
    """Faults with this many kills, spread over deployments that share one broker or several; the contract's object.

    Most of a kill is waiting for the dead worker's session to end, so lanes side by side cost little.
    """
    outage = threading.Lock()
    with ExitStack() as stack:
        proxies = [stack.enter_context(Proxy()) for _ in range(brokers)]
        kafka = KafkaCluster(brokers, advertised=[proxy.address for proxy in proxies])
        for proxy, broker in zip(proxies, kafka.brokers, strict=True):
            proxy.lead_to(broker.address)
        network = Network(proxies)
        stack.enter_context(kafka)
        pool = stack.enter_context(ThreadPoolExecutor(lanes))
        made = []
        for number in range(lanes):
            own = directory / f"lane-{number}"
            own.mkdir()
            strikes = plan(seed * 1_000 + number, kills // lanes + (number < kills % lanes))
            made.append(Lane(kafka, network, outage, own, seed * 1_000 + number, strikes))
        verdicts = [*pool.map(_verdict, made)]
    for finding in (each for v in verdicts for each in (*v.lost, *v.doubled, *v.unequal)):
        sys.stderr.write(f"{finding}\n")
    return {
        "kills": sum(lane.kills for lane in made),
        "seed": seed,
        "brokers": brokers,
        "events": sum(verdict.events for verdict in verdicts),
        "lost": sum(len(verdict.lost) for verdict in verdicts),
        "doubled": sum(len(verdict.doubled) for verdict in verdicts),
        "views_equal": all(verdict.equal for verdict in verdicts),
        "faults": dict(sorted(sum((lane.faults for lane in made), Counter[str]()).items())),
    }


def _verdict(lane: Lane) -> Verdict:
    """Of a lane; a failure is told at once, for others may come of it."""
    try:
        return lane.run()
    except BaseException as error:
        sys.stderr.write(f"a lane failed: {str(error).splitlines()[0]}\n")
        raise


def main() -> int:
    """Run, and print the object; 0 only where nothing was lost, nothing doubled and all views agree."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=3)
    parser.add_argument("--brokers", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="on one line")
    options = parser.parse_args()
    if lacking := missing():
        parser.error(f"Apache Kafka needs {' and '.join(lacking)}")
    with tempfile.TemporaryDirectory(prefix="headwater-chaos-") as directory:
        result = run(options.seed, options.kills, options.lanes, Path(directory), brokers=options.brokers)
    sys.stdout.write(json.dumps(result, indent=None if options.json else 2) + "\n")
    return 0 if result["views_equal"] and not result["lost"] + result["doubled"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
