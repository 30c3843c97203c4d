"""The Python of README and docs runs as it stands."""

import pytest
from support.documents import PAGES, fences, name_of
from support.python_blocks import NOT_RUN, run_blocks

# Run by test_without_a_trainer.py, which also looks at what it wrote.
ELSEWHERE = "docs/without_a_trainer.md"
WITH_BLOCKS = [page for page in PAGES if fences(page, "python") and name_of(page) != ELSEWHERE]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    run_blocks(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_python_and_most_are_run(page):
    codes = [code for _, code in fences(page, "python")]
    for code in codes:
        compile(code, name_of(page), "exec")
    left_out = [code for code in codes if NOT_RUN.match(code)]
    assert len(left_out) <= max(1, len(codes) // 3), "too many blocks are not run"


PAGE = """\
```python
x = 1
```

```python
# not run: why
1 / 0
```

    1 / 0

```python
assert x == 1
1 / 0
```
"""


def test_wrong_code_is_found_with_its_line(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    monkeypatch.setattr("support.python_blocks.name_of", str)
    with pytest.raises(ZeroDivisionError) as error:
        run_blocks(page, tmp_path, monkeypatch)
    assert error.traceback[-1].lineno + 1 == 14
