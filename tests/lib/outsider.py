"""An environment of an outsider's: what this one has, and what they install beside it."""

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees this one's packages, and installs into itself.

    Nothing is downloaded: pip has no index, and takes what is there to build with.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Environment":
        """Return a fresh one."""
        venv.create(folder, with_pip=False)
        made = cls(folder)
        here = sysconfig.get_paths()["purelib"]
        site = made.call(
            "python", "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        )
        # addsitedir, so that what is installed in editable form is found too
        hook = f"import site; site.addsitedir({here!r})\n"
        (Path(site.strip()) / "beside.pth").write_text(hook)
        for script, module in (("ltcore", "ltcore.cli"), ("pip", "pip"), ("pytest", "pytest")):
            path = made.bin / script
            path.write_text(f'#!/bin/sh\nexec "{made.bin}/python" -m {module} "$@"\n')
            path.chmod(0o755)
        return made

    @property
    def bin(self) -> Path:
        """Where its commands are."""
        return self.folder / "bin"

    def run(self, *command: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command with this environment's commands first on the path."""
        env = {
            **os.environ,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # as pip reads it: no isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "TERM": "dumb",
            "COLUMNS": "200",
            "VIRTUAL_ENV": str(self.folder),
        }
        env.pop("PYTHONHOME", None)
        words = [str(word) for word in command]
        return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)

    def call(self, *command: object, cwd: Path | None = None) -> str:
        """Return what a command printed; one that fails ends the test with what it said."""
        words = [self.bin / "python", *command[1:]] if command[0] == "python" else command
        done = self.run(*words, cwd=cwd)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def build(self, package: Path, out: Path) -> Path:
        """Return the wheel of a package, built with what is installed here."""
        command = ["-m", "build", "--wheel", "--no-isolation", "-o", str(out), str(package)]
        before = set(out.glob("*.whl"))
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        (wheel,) = set(out.glob("*.whl")) - before
        return wheel
