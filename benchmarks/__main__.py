"""`python -m benchmarks`: every benchmark that needs nothing but this machine; each writes its page in results."""

import subprocess
import sys

BENCHMARKS = (
    "validation",
    "ingest",
    "simulator",
    "orchestration",
    "orchestration_cost",
    "orchestration_load",
    "serving",
    "release",
    "canary_analysis",
    "monitoring",
    "drift",
    "fleet",
)


def main() -> int:
    """Run them one after another; the exit code is the worst of theirs."""
    codes = [
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
        for name in BENCHMARKS
    ]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
