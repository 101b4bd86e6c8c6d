"""The notebooks travel inside the wheel, as reidlib/notebooks; everything else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithNotebooks(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "reidlib", "notebooks")
            self.mkpath(str(folder))
            for notebook in sorted(Path("notebooks").glob("*.ipynb")):
                self.copy_file(str(notebook), str(folder))


setup(cmdclass={"build_py": WithNotebooks})
