"""Notebooks and pages of the book travel inside the wheel; everything else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TRAVELS = {
    "notebooks": "notebooks/*.ipynb",
    "notebooks/images": "notebooks/images/*.png",
    "docs": "docs/*.md",
}
RENAMED = {
    "docs/data.md": "data/README.md",
    "docs/runs.md": "outputs/README.md",
    "docs/contributing.md": "CONTRIBUTING.md",
}


class WithNotebooks(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout is used as it lies
            return
        package = Path(self.build_lib, "reidlib")
        found = {f"{to}/{file.name}": file for to, files in TRAVELS.items() for file in sorted(Path().glob(files))}
        for to, file in (found | RENAMED).items():
            self.mkpath(str((package / to).parent))
            self.copy_file(str(file), str(package / to))


setup(cmdclass={"build_py": WithNotebooks})
