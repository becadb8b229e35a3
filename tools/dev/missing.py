"""Print the lines of requirement files that this environment does not meet; exit 1 if there are any.

Runs in a bare venv, hence pip's own copy of `packaging`.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement


def missing(lines: list[str]) -> list[str]:
    """The requirements among ``lines`` that are not installed, or not in the version asked for."""
    out = []
    for line in lines:
        text = line.split('#')[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            out.append(f'{text} (found none)')
            continue
        if not requirement.specifier.contains(found.split('+')[0], prereleases=True):  # torch's is 2.1.2+cu121
            out.append(f'{text} (found {found})')
    return out


if __name__ == '__main__':
    unmet = missing([line for name in sys.argv[1:] for line in Path(name).read_text().splitlines()])
    print('\n'.join(unmet), end='\n' if unmet else '')
    sys.exit(bool(unmet))
