"""`eval.py doctor`: what a run would find on this machine."""

import json
from pathlib import Path

from slms.files import write_atomic
from slms.json_values import to_json_values
from slms.measure.doctor import look
from slms.report.doctor import described


def doctor(output_dir: str = "artifacts") -> None:
    """Show, within 5 seconds, the system, the kernels that would run, whether the hub answers and what is cached.

    Args:
        output_dir: doctor.json goes to OUTPUT_DIR/doctor/.
    """
    environment = look()
    path = Path(output_dir) / "doctor" / "doctor.json"
    print(described(environment))
    print(f"\nwritten to {write_atomic(path, json.dumps(to_json_values(environment), indent=1) + chr(10))}")
