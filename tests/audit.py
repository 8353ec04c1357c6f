"""Ask for known vulnerabilities in what is installed (`make audit`); needs pip-audit and the network.

pip-audit alone says "No known vulnerabilities found" also where it could ask about no package at all. Here that counts
as not asked: exit status 0 with a word, as without network. 1 means that something was found.
"""

import importlib.util
import json
import subprocess
import sys


COMMAND = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off", "--format", "json"]
SECONDS = 600


def main() -> int:
    if importlib.util.find_spec("pip_audit") is None:
        return not_asked("pip-audit is not installed: pip install pip-audit")
    try:
        done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return not_asked(f"no answer within {SECONDS} s")
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return not_asked((done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1])
    return report(packages)


def report(packages: list[dict]) -> int:
    """Print what is known of `{"name", "version", "vulns"}` rows; those with a `skip_reason` were not asked about."""
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return not_asked(f"the index knows none of the {len(packages)} packages (a mirror without advisories?)")
    found = [(package, weakness) for package in asked for weakness in package["vulns"]]
    for package, weakness in found:
        mended = ", ".join(weakness.get("fix_versions", [])) or "no version yet"
        print(f"{package['name']} {package['version']}: {weakness['id']}, mended in {mended}")
    print(
        f"{len(found)} known vulnerabilities in {len(asked)} packages; {len(packages) - len(asked)} not asked about."
    )
    return int(bool(found))


def not_asked(reason: str) -> int:
    print(f"Not audited: {reason}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
