"""Every file of the four code folders must be in the wheel, and every one of them in the sdist too.

python .ci/contents.py DIST    (run at the repository's root)
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

FOLDERS = {
    "diffsolve": "diffsolve",
    "problems": "diffsolve/problems",
    "solvers": "diffsolve/solvers",
    "validation": "diffsolve/validation",
}
REQUIRED = ("diffsolve/py.typed", "problems/emoji/model/model_index.json")

listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *FOLDERS]
found = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\n")
source = {f for f in found if Path(f).is_file()}

(wheel,) = Path(sys.argv[1]).glob("*.whl")
(sdist,) = Path(sys.argv[1]).glob("*.tar.gz")
in_wheel = set(zipfile.ZipFile(wheel).namelist())
with tarfile.open(sdist) as tar:
    in_sdist = {name.partition("/")[2] for name in tar.getnames()}

problems = [f"{f}: required, and not in the repository" for f in REQUIRED if f not in source]
for file in sorted(source):
    folder, _, rest = file.partition("/")
    if f"{FOLDERS[folder]}/{rest}" not in in_wheel:
        problems.append(f"{file}: not in {wheel.name}")
    if file not in in_sdist:
        problems.append(f"{file}: not in {sdist.name}")
generic = sorted(f for f in in_wheel if not f.startswith(("diffsolve/", "diffsolve-")))
problems += [f"{f}: in {wheel.name}, outside diffsolve" for f in generic]
sys.exit("\n".join(problems) or 0)
