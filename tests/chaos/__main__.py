"""`python -m tests.chaos`: see `run`. Exit code 1 on any violation; the seed, which it prints, repeats the faults."""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.chaos.run import run


def main() -> None:
    parser = argparse.ArgumentParser(description="Short jobs under random faults.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--jobs", type=int, default=80)
    parser.add_argument("--faults", type=int, default=100)
    given = parser.parse_args()
    print(f"seed {given.seed}: {given.jobs} jobs, {given.faults} faults", flush=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    tally = run(seed=given.seed, jobs=given.jobs, faults=given.faults, say=say)
    print(f"faults: {', '.join(f'{name} {count}' for name, count in sorted(tally.faults.items()))}")
    print(f"attempts a job: {', '.join(f'{count} jobs {number}' for number, count in sorted(tally.attempts.items()))}")
    print(f"ends: {', '.join(f'{count} {status}' for status, count in sorted(tally.ends.items()))}")
    for violation in tally.violations:
        print(f"VIOLATION {violation}")
    verdict = f"{len(tally.violations)} violations" if tally.violations else "no violation"
    jobs = tally.attempts.total()
    print(f"seed {given.seed}: {jobs} jobs, {tally.faults.total()} faults, {time.monotonic() - began:.0f} s: {verdict}")
    sys.exit(bool(tally.violations))


if __name__ == "__main__":
    main()
