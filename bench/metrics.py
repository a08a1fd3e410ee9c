"""What counting costs a worker: `python bench/metrics.py`, for developers.

The records of real conversations, of the sans-IO core under the shipped rules, are given to a meter again and again.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout's, not one that is installed

from profile_core import CLOSE, OPEN, ROUNDS, converse, mail

from smtpproxy.metrics.meter import Meter
from smtpproxy.metrics.regions import ROOM, Regions
from smtpproxy.policy.judge import Judge
from smtpproxy.policy.load import load_rules
from smtpproxy.session.records import AuditRecord

TIMES = 200


def main() -> None:
    """Measure and print."""
    records: list[AuditRecord] = []
    judge = Judge(load_rules(()).rules)
    converse([*OPEN, *mail(1024) * 100, *CLOSE], judge, records.append, lambda: None)
    regions = Regions(1)
    meter = Meter(lambda octets: regions.write(0, octets), ROOM)
    count = meter.count
    counting, publishing = [], []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(TIMES):
            for record in records:
                count(record)
        counting.append((time.process_time() - began) / TIMES / len(records) * 1e6)
        began = time.process_time()
        for _ in range(TIMES):
            count(records[0])
            meter.publish()
        publishing.append((time.process_time() - began) / TIMES * 1e6)
    print(f"a record: {min(counting):.2f} µs ({statistics.median(counting):.2f})")
    print(f"publishing, once a second: {min(publishing):.0f} µs ({statistics.median(publishing):.0f})")


if __name__ == "__main__":
    main()
