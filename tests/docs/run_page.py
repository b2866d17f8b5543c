"""Run the Python blocks of a page, one after another in one namespace, in the working directory.

    python tests/docs/run_page.py PAGE.md

A process of its own for each page: an example may add to the package's tables, and the next page must not see it. A
block with a title is a file of that name, and is written before it is run. An error names the page and its line.
"""

import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parents[1]))

from pages import ROOT, Block, blocks  # its folder is that of this file
from torchvision_operators import BeforeTorchvision  # of tests/


def run(found: list[Block]) -> None:
    """Run blocks of one page in the namespace of a module, as classes and pickles expect."""
    module = ModuleType("page")
    sys.modules["page"] = module
    for block in found:
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, encoding="utf-8")
        shifted = "\n" * (block.line - 1) + block.text
        exec(compile(shifted, str(block.page.relative_to(ROOT)), "exec"), vars(module))


if __name__ == "__main__":
    sys.meta_path.insert(0, BeforeTorchvision())
    page_blocks = blocks(Path(sys.argv[1]).resolve(), "python")
    run(page_blocks)
    print(f"{len(page_blocks)} blocks were run")
